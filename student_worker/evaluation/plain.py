"""How well a student predicts text by itself: cross-entropy and perplexity, with no teacher asked.

Over the same samples, batches and chunks of rows as beside a teacher (`evaluate`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from stillhouse.errors import DataError
from student_worker.batches import NO_LABEL, make_batch
from student_worker.corpus import Samples
from student_worker.evaluation.evaluate import SAMPLES_PER_REQUEST
from student_worker.evaluation.figures import Calibration
from student_worker.shard_step import CHUNK_ROWS
from student_worker.students.base import Student

LARGEST_EXPONENT = 700.0
"""The perplexity of an untrained student may lie beyond a float; this is about as large as one holds."""


@dataclass(frozen=True, slots=True)
class PlainEvaluation:
    """Means over the rows that have a label, in nats; the perplexity is exp of the cross-entropy."""

    cross_entropy: float
    perplexity: float
    calibration_error: float | None
    num_rows: int

    def as_json(self) -> dict[str, float | int | None]:
        """Return the figures by name."""
        return asdict(self)


@torch.no_grad()
def evaluate_alone(student: Student, dataset: Samples, vocabulary_size: int) -> PlainEvaluation:
    """Return the figures of a student over a dataset, its softmax cut to the first `vocabulary_size` ids.

    Raises:
        DataError: no row of the dataset has a label.
    """
    student.module.eval()
    total, labelled, calibration = 0.0, 0, Calibration()
    samples = [sample for sample in (dataset[index] for index in range(len(dataset))) if sample.mask.any()]
    for start in range(0, len(samples), SAMPLES_PER_REQUEST):
        batch = make_batch(samples[start : start + SAMPLES_PER_REQUEST])
        states = student.row_states(batch.to(student.device))
        for row in range(0, batch.num_rows, CHUNK_ROWS):
            labels = batch.labels[row : row + CHUNK_ROWS].to(student.device)
            logits = student.head(states[row : row + CHUNK_ROWS]).float()[:, :vocabulary_size]
            each = torch.nn.functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="none")
            total += float(each.double().sum())
            calibration.add(logits, labels)
            labelled += int((labels != NO_LABEL).sum())
    if labelled == 0:
        raise nothing_to_predict(dataset)
    mean = total / labelled
    return PlainEvaluation(mean, math.exp(min(mean, LARGEST_EXPONENT)), calibration.error(), labelled)


def nothing_to_predict(dataset: Samples) -> DataError:
    """Return the error of a part of the data in which no token is learnt."""
    return DataError(f"the {dataset.name} part of the data holds no token to be predicted; give other data")
