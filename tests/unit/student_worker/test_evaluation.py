"""The held-out figures: against plain formulas, when they are taken, and what is asked for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from stillhouse.asking import Asking
from stillhouse.encodings import Dense, Encoding, TopK
from stillhouse.errors import ConfigurationError, GuardError
from stillhouse.kd.divergences import Divergence
from student_worker.batches import make_batch
from student_worker.cadence import Cadence
from student_worker.callbacks import Callback, Evaluation, RunView, StepRecord
from student_worker.evaluation.evaluate import Evaluator
from student_worker.evaluation.figures import Calibration
from student_worker.students.base import Student
from tests.unit.student_worker.small_run import (
    BagOfBigrams,
    Make,
    N,
    TableTeacher,
    evaluator,
    journal,
    teacher_logits,
)


@pytest.mark.parametrize("encoding", [Dense(), TopK(N, "float32")])
def test_evaluation_equals_the_plain_formulas(dataset: Any, encoding: Encoding) -> None:
    teacher, student = TableTeacher(), BagOfBigrams()
    evaluating = Evaluator(dataset, teacher.answer, Asking(encoding, 1.0, N, "f", "bypass"), max_bytes=10**6)
    evaluation = evaluating.evaluate(student)
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
        evaluating = Evaluator(dataset, teacher.answer, Asking(Dense(), 1.0, N, "f"), max_bytes)
        assert evaluating.evaluate(BagOfBigrams()) == evaluating.evaluate(BagOfBigrams())
        assert len(teacher.requests) == asked


def test_evaluations_stand_in_the_journal_at_start_cadence_and_end(make: Make, dataset: Any, tmp_path: Path) -> None:
    make(evaluator=evaluator(dataset), cadence=Cadence(5, 2, 2, 9)).run()
    assert [record["step"] for record in journal(tmp_path, "evaluation")] == [0, 2, 4, 5]
    assert [record["step"] for record in journal(tmp_path)] == [2, 4, 5]
    first, *_, last = journal(tmp_path, "evaluation")
    assert last["kl"] < first["kl"]


def expected_calibration_error(probabilities: Any, labels: Any) -> float:
    """Guo et al. 2017, equation 3, row by row, with 15 bins."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        if label != -100:
            confidence = max(row)
            place = max(math.ceil(confidence * 15) - 1, 0)
            bins.setdefault(place, []).append((confidence, row.index(confidence) == label))
    rows = sum(map(len, bins.values()))
    gaps = [
        abs(sum(right for _, right in rows_of) - sum(confidence for confidence, _ in rows_of))
        for rows_of in bins.values()
    ]
    return sum(gaps) / rows


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0, 100.0])
def test_the_calibration_error_is_that_of_the_paper_whatever_the_chunks(scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(700, N, generator=generator) * scale
    labels = torch.where(torch.rand(700, generator=generator) < 0.5, logits.argmax(-1), torch.tensor(3))
    labels[::7] = -100
    expected = expected_calibration_error(logits.double().softmax(-1), labels)
    for rows in (700, 512, 9):
        calibration = Calibration()
        for start in range(0, 700, rows):
            calibration.add(logits[start : start + rows], labels[start : start + rows])
        assert calibration.error() == pytest.approx(expected, abs=1e-6)
    assert expected > 0.01


def test_calibration_knows_what_is_perfect_what_is_worst_and_what_has_no_label() -> None:
    sure = torch.full((4, N), -40.0)
    sure[:, 2] = 40.0
    for labels, error in ((torch.full((4,), 2), 0.0), (torch.full((4,), 1), 1.0), (torch.full((4,), -100), None)):
        calibration = Calibration()
        calibration.add(sure, labels)
        assert calibration.error() == error


def test_every_evaluation_of_the_same_weights_has_the_same_bits(dataset: Any) -> None:
    student = BagOfBigrams(dropout=0.5)
    figures = [evaluator(dataset).evaluate(student) for _ in range(2)]
    assert figures[0] == figures[1]


def test_a_student_whose_logits_are_not_finite_is_caught_by_the_evaluation(make: Make, dataset: Any) -> None:
    trainer = make(evaluator=evaluator(dataset), cadence=Cadence(5, 1, 1, 9))

    class Ruin(Callback):
        def on_step_end(self, run: RunView, step: StepRecord) -> None:
            del run, step
            with torch.no_grad():
                next(trainer._parts.student.module.parameters()).fill_(math.nan)

    trainer._hooks._callbacks = [Ruin()]
    with pytest.raises(GuardError, match="the evaluation after step 1 is not finite"):
        trainer.run()


def test_an_encoding_that_cannot_tell_the_divergence_is_refused(dataset: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"eval_encoding 'top_k:3.*reverse_kl needs; write auto"):
        Evaluator(dataset, TableTeacher().answer, Asking(TopK(3), 1.0, N, "f"), 0, divergence=Divergence("reverse_kl"))


def test_a_stop_during_the_last_evaluation_loses_neither_it_nor_the_step(
    make: Make, dataset: Any, tmp_path: Path
) -> None:
    first = make(cadence=Cadence(5, 1, None, 9))
    calls = []

    class Stopped(Evaluator):
        def evaluate(self, student: Student, step: int = 0) -> Evaluation | None:
            calls.append(step)
            if step == 5:
                first._parts.stopping.set()
            return super().evaluate(student, step)

    asking = Asking(Dense(), 1.0, N, "f")
    first._parts.evaluator = Stopped(dataset, TableTeacher().answer, asking, 10**6, stopping=first._parts.stopping)
    outcome = first.run()
    assert (outcome.status, outcome.step, calls) == ("interrupted", 5, [0, 5])
    assert [line["step"] for line in journal(tmp_path, "evaluation")] == [0]
    second = make(resumed=first._parts.state, evaluator=evaluator(dataset), cadence=Cadence(5, 1, None, 9))
    assert second.run().status == "done"
    assert [line["step"] for line in journal(tmp_path, "evaluation")] == [0, 5]
    third = make(resumed=second._parts.state, evaluator=evaluator(dataset), cadence=Cadence(5, 1, None, 9))
    assert third.run().evaluations == [], "what was evaluated before is not evaluated again"
