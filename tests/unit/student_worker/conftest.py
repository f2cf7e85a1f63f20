"""Samples, and a dataset in memory, for the trainer's parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.data import Sample
from tests.unit.student_worker.small_run import Make, make_trainer

MakeSample = Callable[..., Sample]


@pytest.fixture
def make_sample() -> MakeSample:
    """Makes a sample of ids whose labels are the next ids of their own documents."""

    def make(ids: Sequence[int], segments: Sequence[int] = (), masked: Sequence[int] = ()) -> Sample:
        lengths = tuple(segments) or (len(ids),)
        labels = np.array([*ids[1:], -100], dtype=np.int64)
        labels[np.cumsum(lengths) - 1] = -100
        mask = labels != -100
        mask[list(masked)] = False
        return Sample(np.array(ids, dtype=np.uint32), labels, mask, lengths)

    return make


@dataclass(frozen=True)
class MemoryDataset:
    """The part of `PackedDataset` that the trainer uses."""

    samples: tuple[Sample, ...]
    fingerprint: str = "memory"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


@pytest.fixture
def dataset(make_sample: MakeSample) -> MemoryDataset:
    """Eleven samples of differing lengths, segments and masks."""
    samples = []
    for i in range(11):
        ids = [(7 * i + 3 * j) % 20 for j in range(4 + i % 4)]
        samples.append(
            make_sample(ids, segments=(2, len(ids) - 2) if i % 3 == 0 else (), masked=(0,) if i % 4 == 1 else ())
        )
    return MemoryDataset(tuple(samples))


@pytest.fixture
def make(dataset: Any, tmp_path: Path) -> Make:
    """Makes a trainer over the dataset and the table: see `make_trainer`."""
    return partial(make_trainer, dataset, tmp_path)
