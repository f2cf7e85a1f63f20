"""The loop: denominators, guards, votes, evaluation, and bits that do not depend on how it is run."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.data import Order
from stillhouse.encode import encode_logits
from stillhouse.encodings import Dense, Encoding, TopK
from stillhouse.errors import GuardError, TeacherUnavailableError
from stillhouse.payloads import DenseLogits
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, TeacherDescription
from student_worker.batches import Asking, Batch, make_batch
from student_worker.cadence import Cadence
from student_worker.callbacks import RunView
from student_worker.callbacks.best import Best
from student_worker.callbacks.lines import Lines
from student_worker.evaluate import Evaluator
from student_worker.group import SoloGroup
from student_worker.journal import Journal
from student_worker.optimizer import StudentOptimizer
from student_worker.parts import Parts, SavesNothing
from student_worker.prefetch import Key, PatientTeacher, Piece, Prefetcher
from student_worker.reduction import gradient_sum
from student_worker.schedule import Schedule
from student_worker.shard_step import Objective, backward, shard_seed
from student_worker.state import WorkerState
from student_worker.steps import Steps
from student_worker.students.base import ModelCard, Student
from student_worker.trainer import Trainer

V, N, D = 24, 20, 8


class BagOfBigrams(Student):
    """A student whose logits depend on the token alone; its head is one entry wider than the vocabulary."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.ModuleDict({"body": nn.Embedding(V, D), "drop": nn.Dropout(dropout), "head": nn.Linear(D, V)}), 0.1
        )

    @property
    def vocabulary_size(self) -> int:
        return V

    def row_states(self, batch: Batch) -> Tensor:
        states: Tensor = self.module["drop"](self.module["body"](batch.input_ids))  # type: ignore[index]  # a ModuleDict
        return states.flatten(0, 1)[batch.rows]

    def head(self, states: Tensor) -> Tensor:
        logits: Tensor = self.module["head"](states)  # type: ignore[index]  # a ModuleDict
        return logits

    def export(self, folder: Path, card: ModelCard) -> None:
        raise AssertionError(f"not exported here: {folder}, {card}")


def teacher_logits(ids: tuple[int, ...]) -> Tensor:
    table = torch.randn(V, N, generator=torch.Generator().manual_seed(1))
    return table[list(ids)] * 2


class TableTeacher(TeacherLogitsProvider):
    """Looks its logits up by token; remembers what it was asked."""

    def __init__(self, poison: bool = False) -> None:
        self.requests: list[LogitsRequest] = []
        self._poison = poison

    def describe(self) -> TeacherDescription:
        raise AssertionError("not asked here")

    def answer(self, request: LogitsRequest) -> Answer:
        self.requests.append(request)
        payloads = []
        for sequence in request.sequences:
            rows = teacher_logits(sequence.token_ids)[list(sequence.position_indices())]
            payload = encode_logits(
                [rows],
                request.encoding,
                sequence=sequence,
                temperature=request.temperature,
                vocabulary_size=N,
            )
            payloads.append(payload)
        return Answer(tuple(payloads), "f")


Make = Callable[..., Trainer]


@pytest.fixture
def make(dataset: Any, tmp_path: Path) -> Make:
    """Makes a trainer over the dataset and the table; keyword arguments are fields of its `Parts`."""

    def trainer(
        student: Student | None = None,
        teacher: TableTeacher | None = None,
        micro_shards: int = 4,
        alpha: float = 0.3,
        temperature: float = 2.0,
        rate: float = 0.01,
        **fields: Any,
    ) -> Trainer:
        student = student or BagOfBigrams()
        teacher = teacher or TableTeacher()
        stopping = threading.Event()
        patient = PatientTeacher(teacher, 1.0, stopping)
        steps = Steps(dataset, Order(len(dataset), 3, dataset.fingerprint), 6, micro_shards)
        asking = Asking(Dense(), temperature, N, "f")

        def piece(key: Key) -> Piece:
            return Piece(asking.request(steps.shard(*key)), 0)

        optimizer = StudentOptimizer(student.module)
        state = WorkerState(student.module, optimizer, {"recipe": "r"})
        parts = Parts(
            student=student,
            optimizer=optimizer,
            state=state,
            steps=steps,
            prefetcher=Prefetcher(patient, piece, max_bytes=10, stopping=stopping),
            evaluator=None,
            group=SoloGroup(state),
            tree=gradient_sum("exact", micro_shards, optimizer.num_parameters),
            objective=Objective(temperature, alpha, N),
            schedule=Schedule(rate, 0, 5, "constant"),
            cadence=Cadence(5, 1, None, 2),
            view=RunView(tmp_path, "run", 0, 5, is_first=True),
            stopping=stopping,
        )
        parts = replace(parts, **fields)
        return Trainer(replace(parts, callbacks=[Lines(Journal(tmp_path), parts.cadence), *parts.callbacks]))

    return trainer


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in trainer._parts.student.module.parameters()])


def journal(folder: Path, event: str = "step") -> list[dict[str, Any]]:
    return [record for record in Journal(folder).read() if record["event"] == event]


def test_the_loss_is_the_mean_over_the_whole_global_batch_whatever_its_parts(
    make: Make, dataset: Any, tmp_path: Path
) -> None:
    student, temperature, alpha = BagOfBigrams(), 2.0, 0.3
    order = Order(len(dataset), 3, dataset.fingerprint)
    samples = [dataset[i] for i in order.sample_ids(0, 6).tolist()]
    with torch.no_grad():
        student_rows, teacher_rows, labels = [], [], []
        for sample in samples:
            batch = make_batch([sample])
            student_rows.append(student.head(student.row_states(batch))[:, :N])
            teacher_rows.append(teacher_logits(tuple(sample.token_ids.tolist()))[sample.mask])
            labels.append(batch.labels)
    s, t, y = torch.cat(student_rows).double(), torch.cat(teacher_rows).double(), torch.cat(labels)
    kl = temperature**2 * functional.kl_div(
        (s / temperature).log_softmax(-1), (t / temperature).log_softmax(-1), reduction="batchmean", log_target=True
    )
    expected = alpha * functional.cross_entropy(s, y) + (1 - alpha) * kl
    for micro_shards in (1, 2, 4):
        make(student=BagOfBigrams(), micro_shards=micro_shards, cadence=Cadence(1, 1, None, 9)).run()
        assert journal(tmp_path)[-1]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_step_learns_from_every_sample_once(make: Make, dataset: Any) -> None:
    teacher = TableTeacher()
    make(teacher=teacher).run()
    asked = [sequence.token_ids for request in teacher.requests for sequence in request.sequences]
    order = Order(len(dataset), 3, dataset.fingerprint).sample_ids(0, 5 * 6).tolist()
    assert sorted(asked) == sorted(tuple(dataset[i].token_ids.tolist()) for i in order)


def test_dropout_has_the_same_bits_in_every_run_and_others_in_every_shard(make: Make) -> None:
    one, other = make(student=BagOfBigrams(0.5)), make(student=BagOfBigrams(0.5))
    one.run()
    torch.manual_seed(99)
    other.run()
    assert torch.equal(weights(one), weights(other))
    assert len({shard_seed(seed, step, shard) for seed in range(3) for step in range(9) for shard in range(8)}) == 216
    third = make(student=BagOfBigrams(0.5), seed=5)
    third.run()
    assert not torch.equal(weights(one), weights(third))


def test_the_random_state_of_the_process_is_left_alone(make: Make) -> None:
    trainer = make(student=BagOfBigrams(0.5))
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    trainer.run()
    assert torch.equal(torch.rand(1), expected)


def test_a_loss_that_is_not_finite_stops_the_run_before_any_weight_moves(make: Make) -> None:
    trainer = make()
    with torch.no_grad():
        trainer._parts.student.module["head"].bias[3] = math.nan  # type: ignore[index]  # a ModuleDict
    before = weights(trainer)
    with pytest.raises(GuardError, match=r"step 1.*no weight was moved"):
        trainer.run()
    assert torch.equal(weights(trainer).nan_to_num(7.0), before.nan_to_num(7.0))
    assert trainer._parts.state.step == 0


class OneVoteFails(SoloGroup):
    failed = False

    def commit(self) -> bool:
        if not self.failed:
            self.failed = True
            return False
        return super().commit()


def test_a_step_that_is_voted_down_is_done_again_with_the_same_bits(make: Make, tmp_path: Path) -> None:
    calm, disturbed = make(), make()
    disturbed._parts.group = OneVoteFails(disturbed._parts.state)
    calm.run()
    disturbed.run()
    assert torch.equal(weights(calm), weights(disturbed))
    assert [record["step"] for record in journal(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_run_goes_on_from_a_saved_state_with_the_same_bits(make: Make) -> None:
    whole = make()
    whole.run()
    first = make(cadence=Cadence(5, 1, None, 2))

    class StopsAtTheFirst(SavesNothing):
        def save(self, best: Best | None) -> None:
            assert best is None
            first._parts.stopping.set()

    first._parts.saving = StopsAtTheFirst()
    assert first.run().interrupted
    assert first._parts.state.step == 2
    second = make()
    tensors, metadata = first._parts.state.state()
    second._parts.state.load(
        {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(metadata))
    )
    second._parts.group = SoloGroup(second._parts.state, step=2)
    assert not second.run().interrupted
    assert torch.equal(weights(whole), weights(second))


def test_a_run_that_is_stopped_while_it_waits_for_the_teacher_keeps_its_last_step(make: Make) -> None:
    class GoneAfterTwo(TableTeacher):
        def answer(self, request: LogitsRequest) -> Answer:
            if trainer._parts.state.step == 2:
                trainer._parts.stopping.set()
                raise TeacherUnavailableError("gone")
            return super().answer(request)

    trainer = make(teacher=GoneAfterTwo(), micro_shards=1, prefetch_steps=0)
    outcome = trainer.run()
    assert (outcome.interrupted, outcome.step) == (True, 2)
    assert outcome.losses is not None


def test_bfloat16_changes_the_low_bits_and_keeps_float32_weights(make: Make) -> None:
    exact, rough = make(), make(autocast=True)
    exact.run()
    rough.run()
    assert weights(rough).dtype == torch.float32
    assert not torch.equal(weights(exact), weights(rough))
    torch.testing.assert_close(weights(exact), weights(rough), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("encoding", [Dense(), TopK(N, "float32")])
def test_evaluation_equals_the_plain_formulas(dataset: Any, encoding: Encoding) -> None:
    teacher, student = TableTeacher(), BagOfBigrams()
    evaluator = Evaluator(dataset, teacher.answer, Asking(encoding, 1.0, N, "f", "bypass"), max_bytes=10**6)
    evaluation = evaluator.evaluate(student)
    assert evaluation is not None
    batch = make_batch(dataset.samples)
    ids = batch.input_ids.flatten()[batch.rows]
    with torch.no_grad():
        s = student.head(student.row_states(batch))[:, :N].double()
    t = teacher_logits(tuple(ids.tolist())).double()
    kl = functional.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="batchmean", log_target=True)
    assert evaluation.kl == pytest.approx(float(kl), rel=1e-5)
    assert evaluation.agreement == pytest.approx(float((s.argmax(-1) == t.argmax(-1)).double().mean()))
    assert evaluation.perplexity == pytest.approx(math.exp(float(functional.cross_entropy(s, batch.labels))), rel=1e-5)
    if isinstance(encoding, Dense):
        expected = math.exp(float(functional.cross_entropy(t, batch.labels)))
        assert evaluation.perplexity_teacher == pytest.approx(expected, rel=1e-5)
    else:
        assert evaluation.perplexity_teacher is None
    assert all(request.cache_mode == "bypass" and request.temperature == 1.0 for request in teacher.requests)


def test_held_out_answers_are_asked_for_once_where_they_fit_and_each_time_where_not(dataset: Any) -> None:
    for max_bytes, asked in ((10**6, 2), (10, 4)):
        teacher = TableTeacher()
        evaluator = Evaluator(dataset, teacher.answer, Asking(Dense(), 1.0, N, "f"), max_bytes)
        assert evaluator.evaluate(BagOfBigrams()) == evaluator.evaluate(BagOfBigrams())
        assert len(teacher.requests) == asked


def test_evaluations_stand_in_the_journal_at_start_cadence_and_end(make: Make, dataset: Any, tmp_path: Path) -> None:
    evaluator = Evaluator(dataset, TableTeacher().answer, Asking(Dense(), 1.0, N, "f"), 10**6)
    make(evaluator=evaluator, cadence=Cadence(5, 2, 2, 9)).run()
    assert [record["step"] for record in journal(tmp_path, "evaluation")] == [0, 2, 4, 5]
    assert [record["step"] for record in journal(tmp_path)] == [2, 4, 5]
    first, *_, last = journal(tmp_path, "evaluation")
    assert last["kl"] < first["kl"]


def test_head_and_loss_by_chunks_give_the_gradient_of_the_whole(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for rows in (512, 3):
        monkeypatch.setattr("student_worker.shard_step.CHUNK_ROWS", rows)
        student, steps = BagOfBigrams(), Steps(dataset, Order(len(dataset), 3, "x"), 6, 1)
        optimizer = StudentOptimizer(student.module)
        flat = torch.zeros(optimizer.num_parameters)
        optimizer.attach(flat)
        samples = steps.shard(0, 0)
        payloads = TableTeacher().answer(Asking(Dense(), 2.0, N, "f").request(samples)).payloads
        assert all(isinstance(payload, DenseLogits) for payload in payloads)
        backward(student, make_batch(samples), payloads, Objective(2.0, 0.5, N), steps.counts(0), seed=0)
        gradients.append(flat)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert bool(gradients[0].any())
