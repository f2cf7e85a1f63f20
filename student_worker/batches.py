"""Samples to what a model is given: one padded batch, and the rows that count.

A row is one prediction: a position whose mask is set. Rows run through the samples in order, and through each
sample's positions in order; labels, payload rows and student logits all follow that order. Shapes: B samples,
L the longest of them, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillhouse.data import Sample

NO_LABEL = -100

PAD_TOKEN_ID = 0
"""Any id does: padding stands after every row that counts, and causal attention looks back only."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples padded on the right to one length.

    `input_ids` and `position_ids` are `[B, L]` int64. Positions count from 0 in each document and run on through the
    padding, which causal attention keeps out of every row; transformers reads the restarts as document boundaries
    where no attention mask is given. `rows` is `[R]` int64: indices into the flattened `[B * L]`. `labels` is `[R]`.
    """

    input_ids: Tensor
    position_ids: Tensor
    rows: Tensor
    labels: Tensor

    @property
    def num_rows(self) -> int:
        """R."""
        return self.rows.numel()

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device."""
        return Batch(
            self.input_ids.to(device), self.position_ids.to(device), self.rows.to(device), self.labels.to(device)
        )


def make_batch(samples: SequenceOf[Sample]) -> Batch:
    """Pad samples (at least one) into a batch."""
    length = max(len(sample.token_ids) for sample in samples)
    input_ids = np.full((len(samples), length), PAD_TOKEN_ID, dtype=np.int64)
    position_ids = np.zeros((len(samples), length), dtype=np.int64)
    mask = np.zeros((len(samples), length), dtype=bool)
    for index, sample in enumerate(samples):
        size = len(sample.token_ids)
        input_ids[index, :size] = sample.token_ids
        mask[index, :size] = sample.mask
        position_ids[index] = _positions(sample.segment_lengths or (size,), length)
    labels = np.concatenate([sample.labels[sample.mask] for sample in samples])
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(np.flatnonzero(mask)),
        torch.from_numpy(labels.astype(np.int64)),
    )


def _positions(segment_lengths: SequenceOf[int], length: int) -> np.ndarray:
    used = sum(segment_lengths)
    last = segment_lengths[-1] + length - used
    return np.concatenate([np.arange(size) for size in (*segment_lengths[:-1], last)])


@dataclass(frozen=True, slots=True)
class Counts:
    """What a global batch holds: rows that count, rows with a label, and tokens in all."""

    num_valid: int
    num_labelled: int
    num_tokens: int


def count(samples: SequenceOf[Sample]) -> Counts:
    """Count the rows and tokens of samples; the two first are the denominators of the loss."""
    return Counts(
        sum(int(sample.mask.sum()) for sample in samples),
        sum(int((sample.mask & (sample.labels != NO_LABEL)).sum()) for sample in samples),
        sum(len(sample.token_ids) for sample in samples),
    )
