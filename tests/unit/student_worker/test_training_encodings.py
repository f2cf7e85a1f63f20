"""A run through any encoding: those that tell everything end with the same weights, the others learn."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.asking import Asking
from stillhouse.data import Order
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.fixtures import FixtureTeacher
from stillhouse.kd.teacher import TopKTail
from student_worker.cadence import Cadence
from student_worker.callbacks import RunView
from student_worker.callbacks.lines import Lines
from student_worker.elastic.group import SoloGroup
from student_worker.elastic.reduction import gradient_sum
from student_worker.evaluation.evaluate import Evaluator
from student_worker.evaluation.figures import Evaluation
from student_worker.optimizer import StudentOptimizer
from student_worker.parts import Parts
from student_worker.prefetch import Key, PatientTeacher, Piece, Prefetcher
from student_worker.run_folder.journal import Journal
from student_worker.schedule import Schedule
from student_worker.shard_step import Objective
from student_worker.state import WorkerState
from student_worker.steps import Steps
from student_worker.students.fixture import FixtureTrainee
from student_worker.trainer import Trainer

N, STEPS = 20, 8


def run(
    dataset: Any,
    folder: Path,
    encoding: Encoding,
    *,
    temperature: float = 1.0,
    tail: TopKTail = "bucket",
    eval_encoding: Encoding | None = None,
) -> tuple[Tensor, list[Evaluation]]:
    """Train a fixture student; return its row and what the held-out samples (the same ones) said."""
    folder.mkdir(exist_ok=True)
    teacher, stopping = FixtureTeacher(N), threading.Event()
    head = teacher.output_head()
    patient = PatientTeacher(teacher, 1.0, stopping)
    steps = Steps(dataset, Order(len(dataset), 3, dataset.fingerprint), 6, 2)
    asking = Asking(encoding, temperature, N, teacher.describe().fingerprint)
    evaluating = Asking(eval_encoding or Dense(), 1.0, N, teacher.describe().fingerprint, "bypass")

    def piece(key: Key) -> Piece:
        return Piece(asking.request(steps.shard(*key)), 0)

    student = FixtureTrainee(N)
    optimizer = StudentOptimizer(student.module)
    state = WorkerState(student.module, optimizer, {"recipe": "r"})
    trainer = Trainer(
        Parts(
            student=student,
            optimizer=optimizer,
            state=state,
            steps=steps,
            prefetcher=Prefetcher(patient, piece, max_bytes=10, stopping=stopping),
            evaluator=Evaluator(dataset, patient.answer, evaluating, 10**6, head),
            group=SoloGroup(state),
            tree=gradient_sum("exact", 2, optimizer.num_parameters),
            objective=Objective(temperature, 0.2, N, tail, head),
            schedule=Schedule(0.05, 0, STEPS, "constant"),
            cadence=Cadence(STEPS, 1, None, STEPS),
            view=RunView(folder, "run", 0, STEPS, is_first=True),
            callbacks=[Lines(Journal(folder), Cadence(STEPS, 1, None, STEPS))],
            stopping=stopping,
        )
    )
    outcome = trainer.run()
    return next(student.module.parameters()).detach().clone(), [figures for _, figures in outcome.evaluations]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "encoding",
    [Hidden("float32"), Hidden("bfloat16"), Dense("float16"), TopK(N), Candidates(range(N))],
    ids=repr,
)
def test_what_tells_everything_ends_with_the_same_weights(
    dataset: Any, tmp_path: Path, encoding: Encoding, temperature: float
) -> None:
    expected, _ = run(dataset, tmp_path / "dense", Dense(), temperature=temperature)
    weights, _ = run(dataset, tmp_path / "other", encoding, temperature=temperature)
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=0)
    assert float(expected.abs().max()) > 0.1, "a student that never moved would prove nothing"


@pytest.mark.parametrize("encoding", [Sampled(50), TopK(3), Candidates(range(0, N, 2))], ids=repr)
def test_what_tells_some_brings_the_student_nearer(dataset: Any, tmp_path: Path, encoding: Encoding) -> None:
    _, (before, after) = run(dataset, tmp_path, encoding)
    assert after.kl < before.kl


def test_the_tail_is_learnt_from_or_dropped_as_the_recipe_says(dataset: Any, tmp_path: Path) -> None:
    bucket, _ = run(dataset, tmp_path / "bucket", TopK(3), temperature=4.0)
    dropped, _ = run(dataset, tmp_path / "dropped", TopK(3), temperature=4.0, tail="renormalise")
    assert float((bucket - dropped).abs().max()) > 1e-3


@pytest.mark.parametrize("encoding", [Hidden("float32"), Hidden("bfloat16"), Dense("bfloat16")], ids=repr)
def test_evaluation_through_hidden_states_gives_every_figure(dataset: Any, tmp_path: Path, encoding: Encoding) -> None:
    _, expected = run(dataset, tmp_path / "dense", Dense())
    _, figures = run(dataset, tmp_path / "other", Dense(), eval_encoding=encoding)
    for one, other in zip(figures, expected, strict=True):
        assert one.as_json() == pytest.approx(other.as_json())
        assert one.perplexity_teacher is not None
