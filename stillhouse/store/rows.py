"""What a row of a store holds: a sample, and a teacher's answer about it.

Knows what a row must look like to fit its plan, and what was asked to get it; knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stillhouse.asking import asked_sequence
from stillhouse.codec import check_payload
from stillhouse.data.items import TokenIds
from stillhouse.data.packing import Sample
from stillhouse.encodings import Candidates
from stillhouse.errors import CodecError, StoreError
from stillhouse.payload_header import Header, Kind
from stillhouse.payloads import CandidateLogits, Payload, TopKLogits
from stillhouse.request import All, Sequence
from stillhouse.store.manifest import StorePlan


@dataclass(frozen=True, slots=True, eq=False)
class StoredSample:
    """A sample and its answer. `payload` has a row for each position that counts: those where `mask` is set.

    The other fields are those of a `stillhouse.data` `Sample`.
    """

    token_ids: TokenIds
    labels: NDArray[np.int64]
    mask: NDArray[np.bool_]
    segment_lengths: tuple[int, ...]
    payload: Payload

    @property
    def sequence(self) -> Sequence:
        """What was asked: where each position named candidates of its own, with those of the answer."""
        asked = asked_sequence(self.sample)
        if isinstance(self.payload, CandidateLogits) and self.payload.token_ids.dim() == 2:
            return replace(asked, candidate_ids=tuple(map(tuple, self.payload.token_ids.tolist())))
        return asked

    @property
    def sample(self) -> Sample:
        """The sample alone."""
        return Sample(self.token_ids, self.labels, self.mask, self.segment_lengths)


def check_row(plan: StorePlan, sample: Sample, payload: Payload) -> None:
    """See that an answer is one of the plan's encoding, shapes and temperature about the sample.

    Raises:
        StoreError: it is not.
    """
    size = len(sample.token_ids)
    fits = len(sample.labels) == len(sample.mask) == size == sum(sample.segment_lengths) and sample.mask.any()
    if not fits or size > plan.block_size or min(sample.segment_lengths) < 1:
        raise StoreError(
            f"a sample has 1 to {plan.block_size} tokens, as many labels and flags, segments that add up to them, and "
            f"a position that counts; got {size} tokens, {len(sample.labels)} labels, {len(sample.mask)} flags of "
            f"which {int(sample.mask.sum())} are set, and segments {sample.segment_lengths}"
        )
    try:
        found = check_payload(payload)
    except CodecError as error:
        raise StoreError(f"an answer contradicts itself: {error}") from error
    expected = _expected(plan, int(sample.mask.sum()), payload)
    if found != expected:
        raise StoreError(f"the answer to a sample should be {expected}; got {found}")


def _expected(plan: StorePlan, positions: int, payload: Payload) -> Header:
    encoding = plan.answer_encoding
    sequence = Sequence((0,) * positions, positions=All())
    if isinstance(encoding, Candidates) and not encoding.token_ids:
        count = payload.token_ids.shape[-1] if isinstance(payload, CandidateLogits | TopKLogits) else 1
        kind = Kind.POSITION_CANDIDATES
        return Header(kind, encoding.value_type, positions, plan.vocabulary_size, count, plan.temperature)
    return Header.expected(
        encoding,
        sequence,
        temperature=plan.temperature,
        vocabulary_size=plan.vocabulary_size,
        hidden_size=plan.teacher.hidden_size,
    )
