"""Documents end to end, cut into blocks of one length; nothing is copied, dropped or padded.

Block b of a packing is its tokens b * block_size onwards; only the last block may be shorter. Every position's label
is the next token of its own document, also at a block's end, since labels are read from the document and not from
the block; a document's last token has none. Position j counts (its mask is set) iff token j + 1 of its document is to
be learnt. Knows nothing of files: the arrays may be memory-mapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.items import TokenIds

NO_LABEL: Final = -100
"""The label of a position that has none, as transformers writes it."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One block: what a model reads and is to predict.

    `token_ids` uint32 `[L]`; `labels` int64 `[L]`, the next token of the same document or -100; `mask` bool `[L]`,
    whether the position counts; `segment_lengths` are the lengths of the documents, or parts of them, in the block.
    """

    token_ids: TokenIds
    labels: NDArray[np.int64]
    mask: NDArray[np.bool_]
    segment_lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a document that lies in a block: where in the corpus it starts, and whether the document ends."""

    start: int
    length: int
    ends_document: bool


class Packing:
    """Where the tokens of each block lie.

    Args:
        starts: int64 `[D]`, where in the corpus each document starts.
        edges: int64 `[D + 1]`, where each document starts when they stand end to end: 0, then running sums of their
            lengths (each at least 1).
        block_size: tokens of a block.
    """

    def __init__(self, starts: NDArray[np.int64], edges: NDArray[np.int64], block_size: int) -> None:
        self._starts = starts
        self._edges = edges
        self.block_size = block_size
        self.num_tokens = int(edges[-1])
        self.num_blocks = -(-self.num_tokens // block_size)

    def segments(self, block: int) -> list[Segment]:
        """Return the segments of a block, in order.

        Raises:
            IndexError: there is no such block.
        """
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block {block} of {self.num_blocks}")
        at = block * self.block_size
        end = min(at + self.block_size, self.num_tokens)
        document = int(np.searchsorted(self._edges, at, side="right")) - 1
        segments = []
        while at < end:
            document_start, document_end = int(self._edges[document]), int(self._edges[document + 1])
            length = min(end, document_end) - at
            start = int(self._starts[document]) + at - document_start
            segments.append(Segment(start, length, at + length == document_end))
            at += length
            document += 1
        return segments


def read_sample(token_ids: TokenIds, learnt: NDArray[np.bool_] | None, segments: list[Segment]) -> Sample:
    """Read a block out of a corpus.

    Args:
        token_ids: the corpus, uint32 `[N]`.
        learnt: which of its tokens are learnt, bool `[N]`; None: all.
        segments: the block's segments.
    """
    size = sum(segment.length for segment in segments)
    ids = np.empty(size, dtype=np.uint32)
    labels = np.full(size, NO_LABEL, dtype=np.int64)
    mask = np.zeros(size, dtype=np.bool_)
    at = 0
    for segment in segments:
        ids[at : at + segment.length] = token_ids[segment.start : segment.start + segment.length]
        num_labels = segment.length - segment.ends_document
        next_tokens = slice(segment.start + 1, segment.start + 1 + num_labels)
        labels[at : at + num_labels] = token_ids[next_tokens]
        mask[at : at + num_labels] = True if learnt is None else learnt[next_tokens]
        at += segment.length
    return Sample(ids, labels, mask, tuple(segment.length for segment in segments))
