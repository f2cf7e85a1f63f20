"""The loop: denominators, guards, votes, and bits that do not depend on how it is run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from stillhouse.asking import Asking
from stillhouse.data import Order
from stillhouse.encodings import Dense
from stillhouse.errors import GuardError, TeacherUnavailableError
from stillhouse.payloads import DenseLogits
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from student_worker.batches import make_batch
from student_worker.cadence import Cadence
from student_worker.callbacks.best import Best
from student_worker.elastic.group import SoloGroup
from student_worker.optimizer import StudentOptimizer
from student_worker.parts import SavesNothing
from student_worker.shard_step import Objective, backward, shard_seed
from student_worker.steps import Steps
from tests.unit.student_worker.small_run import (
    BagOfBigrams,
    Make,
    N,
    TableTeacher,
    journal,
    teacher_logits,
    weights,
)


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
        def save(self, best: Best | None, *, background: bool = True) -> None:
            del background
            assert best is None
            first._parts.stopping.set()

    first._parts.saving = StopsAtTheFirst()
    assert first.run().interrupted
    assert first._parts.state.step == 2
    second = make(resumed=first._parts.state)
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
