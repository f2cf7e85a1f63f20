"""What every student promises, as a suite of tests that anybody's student can run.

    from student_worker.students.conformance import StudentConformance

    class TestMyStudent(StudentConformance):
        def make_student(self, learning_rate: float) -> StudentLogitsProvider:
            return MyStudent(..., learning_rate=learning_rate)

pytest collects the tests that the class inherits. Needs no pytest itself, and knows nothing of any one student. The
student should be small: a few hundred tokens of vocabulary, made in a moment. Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillhouse.errors import CheckpointError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.kd import kd_step, kd_step_per_position
from stillhouse.providers import StudentLogitsProvider, TokenBatch
from student_worker.students.base import Student
from student_worker.students.trainer_promises import TrainerPromises, check

LEARNING_RATE = 0.05
LENGTHS = (3, 1, 4)
_PASS_LENGTH = 64
"""Ids given at once where every id of the vocabulary is given."""


class StudentConformance(TrainerPromises):
    """The promises of `StudentLogitsProvider`, one test each, and where it is a `Student` those to the trainer.

    Attributes:
        tolerance: relative, between updates that are equal but for rounding. AdamW's first step is nearly the sign of
            the gradient, so that rounding may turn what is next to nothing.
    """

    tolerance: ClassVar[float] = 1e-2

    @abstractmethod
    def make_student(self, learning_rate: float) -> StudentLogitsProvider:
        """Return a fresh student, with the same weights each time, whose steps have this learning rate."""

    def learnt(self, student: Any) -> SequenceOf[Tensor]:
        """Return the tensors that a step moves: by default every parameter of `student.module`."""
        return list(student.module.parameters())

    def first_step(self, gradient: Tensor, learning_rate: float) -> float:
        """Return by how much a first step on the rows' gradient `[B, V]` moves the entry that it moves most.

        By default what Adam and AdamW move it by: the learning rate.
        """
        del gradient
        return learning_rate

    def logits_of_saved(self, folder: Path, token_ids: SequenceOf[int]) -> Tensor | None:
        """Return the logits `[L, V]` of what `save_checkpoint` wrote, opened as others open it.

        By default a folder of transformers; None, where it is none, leaves out the test that asks.
        """
        if not (folder / "config.json").is_file():
            return None
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            logits: Tensor = model(input_ids=torch.tensor([list(token_ids)])).logits[0]
        return logits

    def test_there_is_one_row_of_logits_for_each_prediction(self) -> None:
        student = self._student()
        size, batch = student.vocabulary_size, self._batch(student)
        shape = tuple(student.compute_logits(batch).shape)
        check(shape == (len(batch), size), f"compute_logits gave {shape} for {len(batch)} sequences and V {size}")
        shapes = [tuple(rows.shape) for rows in student.compute_position_logits(batch)]
        check(shapes == [(len(ids), size) for ids in batch], f"compute_position_logits gave {shapes}")
        check(len(student.compute_logits([])) == 0, "compute_logits gave rows for no sequence")
        check(student.compute_position_logits([]) == [], "compute_position_logits gave rows for no sequence")

    def test_the_last_position_is_the_last_of_all_positions(self) -> None:
        student = self._student()
        batch = self._batch(student)
        last, every = student.compute_logits(batch), student.compute_position_logits(batch)
        self._check_close(last, torch.stack([rows[-1] for rows in every]), "the last position differs among all")

    def test_a_sequence_is_answered_as_if_it_stood_alone(self) -> None:
        student = self._student()
        batch = self._batch(student)
        for ids, together in zip(batch, student.compute_position_logits(batch), strict=True):
            alone = self._student().compute_position_logits([ids])[0]
            self._check_close(together, alone, "logits depend on padding or on the other sequences")

    def test_batch_001_every_row_in_the_loss_is_a_row_in_the_update(self) -> None:
        for row in range(len(LENGTHS)):
            alone = torch.zeros_like(self._gradient())
            alone[row] = self._gradient()[row]
            check(bool(self._update(alone).abs().max() > 0), f"a gradient in row {row} alone changed nothing")

    def test_batch_003_the_order_of_the_rows_changes_nothing(self) -> None:
        batch, gradient, order = self._batch(self._student()), self._gradient(), [2, 0, 1]
        shuffled = self._update(gradient[order], batch=[batch[row] for row in order])
        self._check_same_update(shuffled, self._update(gradient), "a batch in another order is another update")

    def test_batch_004_a_batch_given_twice_over_is_the_same_update(self) -> None:
        batch, gradient = self._batch(self._student()), self._gradient()
        twice = self._update(gradient.repeat(2, 1), batch=[*batch, *batch])
        self._check_same_update(twice, self._update(gradient), "the step is a sum over rows where a mean is due")

    def test_batch_005_a_step_divides_by_num_valid(self) -> None:
        gradient, count = self._gradient(), len(LENGTHS)
        # Adam hardly sees the scale of a gradient, but all see which of two scales another step was taken with.
        one = self._two_updates(gradient, count, gradient, 4 * count)
        self._check_same_update(one, self._two_updates(gradient, None, gradient / 4, None), "num_valid is not heeded")

    def test_batch_007_every_position_of_ragged_sequences_is_in_the_update(self) -> None:
        for index, length in enumerate(LENGTHS):
            for position in range(length):
                student = self._student()
                before = self._flat(student)
                gradients = [torch.zeros_like(rows) for rows in student.compute_position_logits(self._batch(student))]
                gradients[index][position] = self._gradient()[0]
                student.apply_gradients(gradients, sum(LENGTHS))
                moved = not torch.equal(before, self._flat(student))
                check(moved, f"a gradient at position {position} of sequence {index} alone changed nothing")

    def test_batch_008_steps_reach_every_parameter(self) -> None:
        student = self._student()
        before = [parameter.detach().clone() for parameter in self.learnt(student)]
        ids = list(range(student.vocabulary_size))
        for _step in range(2):  # in the first, half of an adapter has no gradient yet
            rows = student.compute_position_logits(
                [ids[start : start + _PASS_LENGTH] for start in range(0, len(ids), _PASS_LENGTH)]
            )
            generator = torch.Generator().manual_seed(1)
            student.apply_gradients([torch.randn(part.shape, generator=generator) for part in rows])
        for index, (old, new) in enumerate(zip(before, self.learnt(student), strict=True)):
            stays = (old == new.detach()).reshape(len(old), -1).all(1)
            check(
                not stays.any(), f"{int(stays.sum())} rows of parameter {index}, {list(old.shape)}, stay as they were"
            )

    def test_the_learning_rate_is_the_size_of_a_step(self) -> None:
        gradient = self._gradient()
        for learning_rate in (LEARNING_RATE, LEARNING_RATE / 8):
            moved = float(self._update(gradient, learning_rate=learning_rate).abs().max())
            expected = self.first_step(gradient, learning_rate)
            fault = f"a step of learning rate {learning_rate:g} moves an entry by {moved:g}, not by {expected:g}"
            check(abs(moved - expected) <= 0.05 * expected, fault)

    def test_an_empty_gradient_changes_nothing(self) -> None:
        student = self._student()
        before = self._flat(student)
        student.compute_logits([])
        student.apply_gradients([])
        student.apply_gradients(torch.empty(0, student.vocabulary_size))
        check(torch.equal(before, self._flat(student)), "a step without rows has moved the weights")

    def test_rows_that_were_not_computed_are_refused_and_change_nothing(self) -> None:
        student = self._student()
        batch, before, given = self._batch(student), self._flat(student), self._gradient()
        for wrong in (given[:-1], given.repeat(2, 1), given[:, 1:], torch.nn.functional.pad(given, (0, 1))):
            student.compute_logits(batch)
            try:
                student.apply_gradients(wrong)
            except ValueError:
                pass
            else:
                check(holds=False, fault=f"a gradient {list(wrong.shape)} was taken for logits {list(given.shape)}")
        check(torch.equal(before, self._flat(student)), "a refused gradient has moved the weights")

    def test_steps_towards_the_teacher_lower_the_loss(self) -> None:
        student = self._student()
        batch = self._batch(student)
        teacher, last, every = FixtureTeacher(student.vocabulary_size), [], []
        for _step in range(5):
            loss, gradients = kd_step(teacher, batch, [2, 3, 4], 2.0, 0.0, student.compute_logits)
            student.apply_gradients(gradients)
            last.append(loss)
        labels = [[*ids[1:], -100] for ids in batch]
        for _step in range(5):
            loss, parts = kd_step_per_position(teacher, batch, labels, 2.0, 0.5, student.compute_position_logits)
            student.apply_gradients(parts, sum(LENGTHS))
            every.append(loss)
        check(last[-1] < last[0], f"five steps on last positions took the loss from {last[0]:g} to {last[-1]:g}")
        check(every[-1] < every[0], f"five steps on every position took the loss from {every[0]:g} to {every[-1]:g}")

    def test_a_checkpoint_is_written_and_holds_what_was_learnt(self) -> None:
        student = self._student()
        with tempfile.TemporaryDirectory() as root:
            student.save_checkpoint(Path(root) / "before")
            self._step(student)
            student.save_checkpoint(Path(root) / "after")
            before, after = (
                {file.name: file.read_bytes() for file in (Path(root) / name).glob("*")} for name in ("before", "after")
            )
        check(bool(after), "save_checkpoint wrote no file")
        check(before.keys() == after.keys(), f"one checkpoint has {sorted(before)}, another {sorted(after)}")
        check(before != after, "a checkpoint is the same before and after a step")

    def test_what_was_saved_gives_the_logits_that_were_learnt(self) -> None:
        student = self._student()
        self._step(student)
        ids = self._batch(student)[-1]
        with tempfile.TemporaryDirectory() as root:
            student.save_checkpoint(Path(root) / "saved")
            saved = self.logits_of_saved(Path(root) / "saved", ids)
        if saved is not None:
            own = student.compute_position_logits([ids])[0]
            self._check_close(saved, own, "what was saved gives other logits than the student")

    def test_a_student_that_is_not_finite_is_never_written(self) -> None:
        for value in (torch.nan, torch.inf):
            student = self._student()
            with torch.no_grad():
                self.learnt(student)[-1].view(-1)[0] = value
            with tempfile.TemporaryDirectory() as root:
                try:
                    student.save_checkpoint(Path(root) / "saved")
                except CheckpointError:
                    files = [path.name for path in Path(root).rglob("*") if path.is_file()]
                    check(not files, f"a checkpoint that was refused has left {files}")
                else:
                    check(holds=False, fault=f"a checkpoint was written though a weight is {value}")

    def _student(self, learning_rate: float = LEARNING_RATE) -> StudentLogitsProvider:
        return self.make_student(learning_rate)

    def _trained(self) -> Student | None:
        student = self._student()
        return student if isinstance(student, Student) else None

    def _batch(self, student: StudentLogitsProvider) -> list[list[int]]:
        """Return ragged sequences; no two begin alike."""
        ids = iter(range(1, sum(LENGTHS) + 1))
        return [[next(ids) % student.vocabulary_size for _ in range(length)] for length in LENGTHS]

    def _gradient(self) -> Tensor:
        shape = (len(LENGTHS), self._student().vocabulary_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def _flat(self, student: StudentLogitsProvider) -> Tensor:
        return torch.cat([parameter.detach().clone().reshape(-1) for parameter in self.learnt(student)])

    def _step(self, student: StudentLogitsProvider) -> None:
        student.compute_logits(self._batch(student))
        student.apply_gradients(self._gradient())

    def _update(
        self, gradient: Tensor, *, batch: TokenBatch | None = None, learning_rate: float = LEARNING_RATE
    ) -> Tensor:
        """Return by how much one step moves a fresh student's parameters, laid end to end."""
        student = self._student(learning_rate)
        before = self._flat(student)
        student.compute_logits(self._batch(student) if batch is None else batch)
        student.apply_gradients(gradient)
        return self._flat(student) - before

    def _two_updates(self, first: Tensor, first_valid: int | None, second: Tensor, second_valid: int | None) -> Tensor:
        student = self._student()
        before = self._flat(student)
        for gradient, num_valid in ((first, first_valid), (second, second_valid)):
            student.compute_logits(self._batch(student))
            student.apply_gradients(gradient, num_valid)
        return self._flat(student) - before

    def _check_same_update(self, ours: Tensor, theirs: Tensor, fault: str) -> None:
        difference, size = float((ours - theirs).norm()), float(theirs.norm())
        check(difference <= self.tolerance * size, f"{fault}: they differ by {difference:g} of {size:g}")

    def _check_close(self, ours: Tensor, theirs: Tensor, fault: str) -> None:
        check(ours.shape == theirs.shape, f"{fault}: {list(ours.shape)} and {list(theirs.shape)}")
        difference = float((ours.float().cpu() - theirs.float().cpu()).abs().max())
        check(difference <= 1e-3 * max(1.0, float(theirs.abs().max())), f"{fault}, by {difference:g}")
