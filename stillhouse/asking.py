"""How samples are asked about: the same for every request of a run, or of a capture.

Training and capture ask by this one module, so that what was captured answers what is trained on. Knows nothing of who
answers.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from stillhouse.data.packing import Sample
from stillhouse.encodings import Encoding
from stillhouse.request import All, CacheMode, Explicit, LogitsRequest, Sequence


@dataclass(frozen=True, slots=True)
class Asking:
    """How a teacher is asked: the same for every request."""

    encoding: Encoding
    temperature: float
    vocabulary_size: int
    fingerprint: str
    cache_mode: CacheMode = "use"

    def request(
        self, samples: SequenceOf[Sample], indices: SequenceOf[tuple[str, int] | None] | None = None
    ) -> LogitsRequest:
        """Ask about the rows of samples; one with none is left out, since nothing could be answered about it.

        `indices` say for each sample its part and its index there, for whom a store may answer.
        """
        places = indices if indices is not None else [None] * len(samples)
        pairs = zip(samples, places, strict=True)
        return LogitsRequest(
            sequences=tuple(asked_sequence(sample, place) for sample, place in pairs if sample.mask.any()),
            encoding=self.encoding,
            temperature=self.temperature,
            vocabulary_size=self.vocabulary_size,
            cache_mode=self.cache_mode,
            expected_fingerprint=self.fingerprint,
        )


def asked_sequence(sample: Sample, place: tuple[str, int] | None = None) -> Sequence:
    """Return what is asked about one sample: the positions that count, none of them across documents."""
    positions = All() if sample.mask.all() else Explicit(tuple(np.flatnonzero(sample.mask).tolist()))
    segments = tuple(int(length) for length in sample.segment_lengths)
    return Sequence(
        tuple(sample.token_ids.tolist()), segments if len(segments) > 1 else (), positions, sample_index=place
    )
