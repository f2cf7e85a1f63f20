"""The part of the students' suite that only a `Student`, which the trainer can train, has to keep.

Each test passes over a student that is none. Knows nothing of pytest, nor of any one student.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from torch import Tensor

from student_worker.batches import NO_LABEL, Batch
from student_worker.students.base import Student

DOCUMENTS = (5, 1, 3)
SAMPLES = 4


class TrainerPromises:
    """What the trainer relies on, one test each."""

    @abstractmethod
    def _trained(self) -> Student | None:
        """Return a fresh student, None where the trainer could not train it."""

    def test_documents_in_one_sample_do_not_see_each_other(self) -> None:
        student = self._trained()
        if student is None:
            return
        student.module.eval()
        size = student.vocabulary_size
        ids = [(torch.arange(length) * 7 + index) % size for index, length in enumerate(DOCUMENTS)]
        packed = _logits(student, _batch([torch.cat(ids)], DOCUMENTS))
        alone = torch.cat([_logits(student, _batch([part], (len(part),))) for part in ids])
        check(_near(packed, alone), "a document's logits depend on the document before it in the sample")

    def test_batch_006_gradients_of_parts_add_up_to_those_of_the_whole(self) -> None:
        student = self._trained()
        if student is None:
            return
        generator = torch.Generator().manual_seed(2)
        rows = [torch.randint(student.vocabulary_size, (sum(DOCUMENTS),), generator=generator) for _ in range(SAMPLES)]
        weights = torch.randn(SAMPLES * sum(DOCUMENTS), student.vocabulary_size, generator=generator)
        whole = _gradient(self._trained(), _batch(rows, DOCUMENTS), weights)
        parts: Any = 0
        for start, stop in ((0, 1), (1, SAMPLES)):
            of_part = weights[start * sum(DOCUMENTS) : stop * sum(DOCUMENTS)]
            parts = parts + _gradient(self._trained(), _batch(rows[start:stop], DOCUMENTS), of_part)
        check(_near(parts, whole), "the gradients of two parts of a batch do not add up to the whole batch's")

    def test_the_head_gives_the_same_in_chunks(self) -> None:
        student = self._trained()
        if student is None:
            return
        student.module.eval()
        ids = torch.arange(sum(DOCUMENTS)) % student.vocabulary_size
        with torch.no_grad():
            states = student.row_states(_batch([ids], DOCUMENTS))
            chunks = torch.cat([student.head(chunk) for chunk in torch.split(states, 2)])
            check(_near(chunks, student.head(states)), "head() gives other logits in chunks of 2 rows")

    def test_training_follows_from_the_seed_and_evaluation_from_nothing(self) -> None:
        student = self._trained()
        if student is None:
            return
        batch = _batch([torch.arange(sum(DOCUMENTS)) % student.vocabulary_size], DOCUMENTS)
        student.module.train()
        check(torch.equal(_logits(student, batch, 1), _logits(student, batch, 1)), "one seed gives two forward passes")
        student.module.eval()
        check(torch.equal(_logits(student, batch, 1), _logits(student, batch, 2)), "evaluation draws random numbers")


def check(holds: Any, fault: str) -> None:
    """Raise an AssertionError of this fault, unless it holds."""
    if not holds:
        raise AssertionError(fault)


def _batch(samples: SequenceOf[Tensor], lengths: SequenceOf[int]) -> Batch:
    """Return samples of documents of the same lengths; every position is a row."""
    ids = torch.stack(list(samples))
    positions = torch.cat([torch.arange(length) for length in lengths]).repeat(len(samples), 1)
    rows = torch.arange(ids.numel())
    return Batch(ids, positions, rows, torch.full_like(rows, NO_LABEL))


def _logits(student: Student, batch: Batch, seed: int = 0) -> Tensor:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return student.head(student.row_states(batch.to(student.device))).detach().cpu()


def _gradient(student: Any, batch: Batch, weights: Tensor) -> Tensor:
    """Return the gradient of the weighted sum of all logits, every parameter's laid end to end."""
    student.module.eval()
    logits = student.head(student.row_states(batch.to(student.device)))
    torch.autograd.backward(logits, weights.to(student.device))
    return torch.cat([p.grad.reshape(-1).cpu() for p in student.module.parameters() if p.grad is not None])


def _near(ours: Tensor, theirs: Tensor) -> bool:
    return bool(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * max(1.0, float(theirs.abs().max()))))
