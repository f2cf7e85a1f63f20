"""What every `StudentLogitsProvider` promises; one suite over every implementation.

Planted faults stand at the end: a suite that let one of them pass would be no suite.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse.errors import CheckpointError
from stillhouse.fixtures import FixtureStudent, FixtureTeacher
from stillhouse.kd import kd_step, kd_step_per_position
from stillhouse.providers import StudentLogitsProvider, TokenBatch
from student_worker.students.causal_lm import CausalLMStudent
from student_worker.students.fixture import FixtureTrainee

V = 17
BATCH = [[1, 2, 3], [4], [5, 6, 7, 8]]
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Case:
    """An implementation: how a fresh one is made, always the same, and which tensors it learns.

    `tolerance` is relative, between updates that are equal but for rounding. AdamW's first step is nearly the sign of
    the gradient, so that rounding may turn what is next to nothing.
    """

    name: str
    make: Callable[[], StudentLogitsProvider]
    parameters: Callable[[Any], SequenceOf[Tensor]]
    tolerance: float = 1e-4


def tiny_causal_lm() -> CausalLMStudent:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=V, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return CausalLMStudent(LlamaForCausalLM(config), learning_rate=LEARNING_RATE)


CASES = [
    Case("FixtureStudent", lambda: FixtureStudent(V, 0.0, LEARNING_RATE), lambda student: [student.row]),
    Case(
        "FixtureTrainee",
        lambda: FixtureTrainee(V, learning_rate=LEARNING_RATE),
        lambda student: list(student.module.parameters()),
        tolerance=1e-2,
    ),
    Case("causal_lm", tiny_causal_lm, lambda student: list(student.module.parameters()), tolerance=1e-2),
]


def gradient_rows(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def update(case: Case, gradient: Tensor, *, batch: TokenBatch = BATCH, num_valid: int | None = None) -> Tensor:
    """Return by how much one step moves a fresh student's parameters, laid end to end."""
    student = case.make()
    before = flat(case, student)
    student.compute_logits(batch)
    student.apply_gradients(gradient, num_valid)
    return flat(case, student) - before


def flat(case: Case, student: StudentLogitsProvider) -> Tensor:
    return torch.cat([parameter.detach().clone().reshape(-1) for parameter in case.parameters(student)])


def assert_same_update(case: Case, a: Tensor, b: Tensor) -> None:
    assert float((a - b).norm()) <= case.tolerance * float(a.norm())


def shapes_are_one_row_for_each_prediction(case: Case, _: Path) -> None:
    student = case.make()
    assert student.vocabulary_size == V
    assert student.compute_logits(BATCH).shape == (len(BATCH), V)
    assert [rows.shape for rows in student.compute_position_logits(BATCH)] == [(len(ids), V) for ids in BATCH]
    assert len(student.compute_logits([])) == 0
    assert student.compute_position_logits([]) == []


def the_last_position_is_the_last_of_all_positions(case: Case, _: Path) -> None:
    student = case.make()
    last, every = student.compute_logits(BATCH), student.compute_position_logits(BATCH)
    torch.testing.assert_close(last, torch.stack([rows[-1] for rows in every]))


def batch_001_every_row_in_the_loss_is_a_row_in_the_update(case: Case, _: Path) -> None:
    for row in range(len(BATCH)):
        alone = torch.zeros(len(BATCH), V)
        alone[row] = gradient_rows(1)
        assert bool(update(case, alone).abs().max() > 0), f"row {row} changed nothing"


def batch_003_the_order_of_the_rows_changes_nothing(case: Case, _: Path) -> None:
    gradient, order = gradient_rows(len(BATCH)), [2, 0, 1]
    shuffled = update(case, gradient[order], batch=[BATCH[row] for row in order])
    assert_same_update(case, update(case, gradient), shuffled)


def batch_004_a_batch_given_twice_over_is_the_same_update(case: Case, _: Path) -> None:
    gradient = gradient_rows(len(BATCH))
    twice = update(case, gradient.repeat(2, 1), batch=[*BATCH, *BATCH])
    assert_same_update(case, update(case, gradient), twice)


def batch_005_the_step_divides_by_num_valid(case: Case, _: Path) -> None:
    gradient = gradient_rows(len(BATCH))
    assert_same_update(case, update(case, gradient / 2), update(case, gradient, num_valid=2 * len(BATCH)))
    assert_same_update(case, update(case, gradient), update(case, gradient, num_valid=len(BATCH)))


def batch_007_every_position_of_ragged_sequences_is_in_the_update(case: Case, _: Path) -> None:
    for index, ids in enumerate(BATCH):
        for position in range(len(ids)):
            student = case.make()
            before = flat(case, student)
            gradients = [torch.zeros_like(rows) for rows in student.compute_position_logits(BATCH)]
            gradients[index][position] = gradient_rows(1)
            student.apply_gradients(gradients, sum(map(len, BATCH)))
            assert not torch.equal(before, flat(case, student)), f"position {position} of sequence {index}"


def batch_008_the_learning_rate_reaches_every_parameter(case: Case, _: Path) -> None:
    """With every id in the batch, so that every row of an embedding has a gradient."""
    student = case.make()
    before = [parameter.detach().clone() for parameter in case.parameters(student)]
    rows = student.compute_position_logits([list(range(V))])
    student.apply_gradients([gradient_rows(len(rows[0]))])
    for old, new in zip(before, case.parameters(student), strict=True):
        assert bool((old != new).reshape(len(old), -1).any(1).all())


def an_empty_gradient_changes_nothing(case: Case, _: Path) -> None:
    student = case.make()
    before = flat(case, student)
    student.compute_logits([])
    student.apply_gradients([])
    student.apply_gradients(torch.empty(0, V))
    assert torch.equal(before, flat(case, student))


def rows_that_were_not_computed_are_refused_and_change_nothing(case: Case, _: Path) -> None:
    student = case.make()
    before = flat(case, student)
    for wrong in (gradient_rows(2), gradient_rows(4), gradient_rows(3)[:, 1:], torch.zeros(3, V + 1)):
        student.compute_logits(BATCH)
        with pytest.raises(ValueError, match=r"gradient"):
            student.apply_gradients(wrong)
    assert torch.equal(before, flat(case, student))


def steps_towards_the_teacher_lower_the_loss(case: Case, _: Path) -> None:
    teacher, student, last, every = FixtureTeacher(V), case.make(), [], []
    for _step in range(5):
        loss, gradients = kd_step(teacher, BATCH, [2, 3, 4], 2.0, 0.0, student.compute_logits)
        student.apply_gradients(gradients)
        last.append(loss)
    labels = [[*ids[1:], -100] for ids in BATCH]
    for _step in range(5):
        loss, parts = kd_step_per_position(teacher, BATCH, labels, 2.0, 0.5, student.compute_position_logits)
        student.apply_gradients(parts, sum(map(len, BATCH)))
        every.append(loss)
    assert last[-1] < last[0]
    assert every[-1] < every[0]


def a_checkpoint_is_written_and_holds_what_was_learnt(case: Case, folder: Path) -> None:
    student = case.make()
    student.save_checkpoint(folder / "before")
    student.compute_logits(BATCH)
    student.apply_gradients(gradient_rows(len(BATCH)))
    student.save_checkpoint(folder / "after")
    before, after = (
        {file.name: file.read_bytes() for file in (folder / name).iterdir()} for name in ("before", "after")
    )
    assert before.keys() == after.keys()
    assert any(name.endswith(".safetensors") and before[name] != after[name] for name in after)


def a_student_that_is_not_finite_is_never_written(case: Case, folder: Path) -> None:
    student = case.make()
    with torch.no_grad():
        case.parameters(student)[0].view(-1)[0] = torch.nan
    with pytest.raises(CheckpointError):
        student.save_checkpoint(folder / "nan")
    assert not list(folder.rglob("*.safetensors"))


Promise = Callable[[Case, Path], None]
PROMISES: list[Promise] = [
    shapes_are_one_row_for_each_prediction,
    the_last_position_is_the_last_of_all_positions,
    batch_001_every_row_in_the_loss_is_a_row_in_the_update,
    batch_003_the_order_of_the_rows_changes_nothing,
    batch_004_a_batch_given_twice_over_is_the_same_update,
    batch_005_the_step_divides_by_num_valid,
    batch_007_every_position_of_ragged_sequences_is_in_the_update,
    batch_008_the_learning_rate_reaches_every_parameter,
    an_empty_gradient_changes_nothing,
    rows_that_were_not_computed_are_refused_and_change_nothing,
    steps_towards_the_teacher_lower_the_loss,
    a_checkpoint_is_written_and_holds_what_was_learnt,
    a_student_that_is_not_finite_is_never_written,
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_student_promise(case: Case, promise: Promise, tmp_path: Path) -> None:
    promise(case, tmp_path)


class LastRowOnly(FixtureStudent):
    def apply_gradients(self, gradients: Tensor | SequenceOf[Tensor], num_valid: int | None = None) -> None:
        kept = copy.deepcopy(list(gradients))
        for row in kept[:-1]:
            row.zero_()
        super().apply_gradients(kept, num_valid)


class LastPositionStandsIn(FixtureStudent):
    def compute_position_logits(self, input_ids: TokenBatch) -> list[Tensor]:
        return [row[None] for row in self.compute_logits(input_ids)]


class SumInsteadOfMean(FixtureStudent):
    def apply_gradients(self, gradients: Tensor | SequenceOf[Tensor], num_valid: int | None = None) -> None:
        del num_valid
        super().apply_gradients(gradients, 1)


class DeafToNumValid(FixtureStudent):
    def apply_gradients(self, gradients: Tensor | SequenceOf[Tensor], num_valid: int | None = None) -> None:
        del num_valid
        super().apply_gradients(gradients)


class FrozenFirstEntry(FixtureStudent):
    def apply_gradients(self, gradients: Tensor | SequenceOf[Tensor], num_valid: int | None = None) -> None:
        first = self.row[0].clone()
        super().apply_gradients(gradients, num_valid)
        self.row[0] = first


class TakesAnyRows(FixtureStudent):
    def apply_gradients(self, gradients: Tensor | SequenceOf[Tensor], num_valid: int | None = None) -> None:
        self._computed_rows = None
        super().apply_gradients(gradients, num_valid)


class ClimbsInsteadOfDescends(FixtureStudent):
    def __init__(self, *_: object) -> None:
        super().__init__(V, 0.0, -LEARNING_RATE)


class SavesNothing(FixtureStudent):
    def save_checkpoint(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


def faulty(student: type[FixtureStudent]) -> Case:
    return Case(student.__name__, lambda: student(V, 0.0, LEARNING_RATE), lambda made: [made.row])


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        (LastRowOnly, batch_001_every_row_in_the_loss_is_a_row_in_the_update),
        (LastRowOnly, batch_003_the_order_of_the_rows_changes_nothing),
        (LastRowOnly, batch_007_every_position_of_ragged_sequences_is_in_the_update),
        (LastPositionStandsIn, shapes_are_one_row_for_each_prediction),
        (LastPositionStandsIn, batch_007_every_position_of_ragged_sequences_is_in_the_update),
        (SumInsteadOfMean, batch_004_a_batch_given_twice_over_is_the_same_update),
        (SumInsteadOfMean, batch_005_the_step_divides_by_num_valid),
        (DeafToNumValid, batch_005_the_step_divides_by_num_valid),
        (FrozenFirstEntry, batch_008_the_learning_rate_reaches_every_parameter),
        (TakesAnyRows, rows_that_were_not_computed_are_refused_and_change_nothing),
        (ClimbsInsteadOfDescends, steps_towards_the_teacher_lower_the_loss),
        (SavesNothing, a_checkpoint_is_written_and_holds_what_was_learnt),
        (SavesNothing, a_student_that_is_not_finite_is_never_written),
    ],
    ids=lambda part: part.__name__,
)
def test_batch_002_a_planted_fault_is_caught(fault: type[FixtureStudent], promise: Promise, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, IndexError, pytest.fail.Exception)):
        promise(faulty(fault), tmp_path)
    promise(CASES[0], tmp_path / "sound")
