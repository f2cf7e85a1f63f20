"""What a run reads: a corpus that was prepared from sources, or the samples that stand in a store.

Both are the same samples in the same places under the same fingerprint, so that a run takes them in the same order.
Knows nothing of recipes or teachers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from stillhouse.data import Prepared, Sample
from stillhouse.data.dataset import Part, PartName

if TYPE_CHECKING:
    from stillhouse.store import Store, StorePart

SAMPLES_REMEMBERED = 1024
"""Of a store: a sample is looked at when its answer is asked for, when its step's rows are counted, and when it is
learnt from. At 1,024 tokens a sample, 14 MB."""


class Samples(Protocol):
    """The samples of one part, as `PackedDataset` has them."""

    @property
    def name(self) -> PartName:
        """Which part it is."""

    @property
    def part(self) -> Part:
        """Its counts."""

    @property
    def fingerprint(self) -> str:
        """Names the samples' content."""

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that made the ids; empty where there was none."""

    @property
    def max_token_id(self) -> int:
        """The highest id of all parts."""

    @property
    def block_size(self) -> int:
        """Tokens of a sample, but for the last."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def sample_lengths(self) -> NDArray[np.int64]:
        """Return the length in tokens of each sample."""


class StoredSamples:
    """The samples of one part of a store, without their answers; several threads may share it."""

    def __init__(self, part: StorePart) -> None:
        self._part = part
        self.name: PartName = part.name
        self.part: Part = part.part
        self.fingerprint: str = part.fingerprint
        self.tokenizer_fingerprint: str = part.tokenizer_fingerprint
        self.max_token_id: int = part.max_token_id
        self.block_size: int = part.block_size
        self._sample = lru_cache(maxsize=SAMPLES_REMEMBERED)(part.sample)

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index)

    def sample_lengths(self) -> NDArray[np.int64]:
        """Return the length in tokens of each sample, int64 `[S]`."""
        return self._part.sample_lengths()


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is trained on, and what is held out of that."""

    train: Samples
    held_out: Samples | None

    def part(self, name: PartName) -> Samples | None:
        """Return one of its parts, None where there is none."""
        return self.train if name == "train" else self.held_out


def prepared_corpus(prepared: Prepared) -> Corpus:
    """Return what was prepared from sources."""
    return Corpus(prepared.train, prepared.held_out)


def stored_corpus(store: Store) -> Corpus:
    """Return what stands in a store."""
    return Corpus(StoredSamples(store.train), StoredSamples(store.held_out) if store.held_out is not None else None)
