"""Which part of a corpus is held out of training, so that nothing of it is trained on.

The choice follows from content alone: pieces are taken in the order of their content's hash until enough tokens are
held out. So pieces of the same content always fall on the same side, and the choice is the same on every machine and
under every seed. Pieces are whole documents; where those would miss what was asked by half or more (one long file, a
few books), they are the blocks that documents are cut into. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.items import TokenIds
from stillhouse.errors import DataError

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Stretches of a corpus, each a document or a part of one that stands for itself; int64 `[D]` each."""

    starts: Numbers
    lengths: Numbers

    @property
    def num_tokens(self) -> int:
        """Tokens in all of them together."""
        return int(self.lengths.sum())


def content_key(*parts: bytes | memoryview) -> int:
    """Return 63 bits that tell one content from another."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little") >> 1


def split(
    documents: Ranges, document_keys: Numbers, token_ids: TokenIds, *, target_tokens: int, block_size: int
) -> tuple[Ranges, Ranges]:
    """Return the training part and the held-out part.

    Args:
        documents: the documents of the corpus, in its order.
        document_keys: the content key of each.
        token_ids: the corpus.
        target_tokens: how many tokens to hold out, at most.
        block_size: the length of the pieces that documents are cut into, where they must be.

    Raises:
        DataError: no choice leaves something on both sides.
    """
    held = _choose(document_keys, documents.lengths, target_tokens)
    if 2 * int(documents.lengths[held].sum()) > target_tokens and not held.all():
        return _taken(documents, ~held), _taken(documents, held)
    pieces, ends_document = _cut(documents, block_size)
    keys = np.asarray(
        [
            content_key(np.ascontiguousarray(token_ids[start : start + length]).data.cast("B"))
            for start, length in zip(pieces.starts.tolist(), pieces.lengths.tolist(), strict=True)
        ],
        dtype=np.int64,
    )
    held = _choose(keys, pieces.lengths, target_tokens)
    if held.all() or not held.any():
        raise DataError(
            f"no part of about {target_tokens} tokens can be held out of {documents.num_tokens} so that both sides "
            f"have text of their own (block_size {block_size}); hold out more, take smaller blocks, or name "
            "held_out_sources"
        )
    return _joined(pieces, ends_document, ~held), _joined(pieces, ends_document, held)


def _choose(keys: Numbers, lengths: Numbers, target_tokens: int) -> NDArray[np.bool_]:
    """Take contents in the order of their keys, each with all its copies, leaving out what would be too much."""
    contents, inverse = np.unique(keys, return_inverse=True)
    sizes = np.bincount(inverse, weights=lengths, minlength=len(contents)).astype(np.int64)
    taken = np.zeros(len(contents), dtype=np.bool_)
    total = 0
    for index, size in enumerate(sizes.tolist()):
        if total + size <= target_tokens:
            taken[index] = True
            total += size
    return taken[inverse]


def _taken(ranges: Ranges, which: NDArray[np.bool_]) -> Ranges:
    return Ranges(ranges.starts[which], ranges.lengths[which])


def _cut(documents: Ranges, block_size: int) -> tuple[Ranges, NDArray[np.bool_]]:
    """Cut documents into pieces of a block's length, and tell which piece ends its document."""
    counts = -(-documents.lengths // block_size)
    firsts = np.cumsum(counts) - counts
    document = np.repeat(np.arange(len(counts)), counts)
    offsets = (np.arange(len(document)) - firsts[document]) * block_size
    lengths = np.minimum(block_size, documents.lengths[document] - offsets)
    return Ranges(documents.starts[document] + offsets, lengths), offsets + lengths == documents.lengths[document]


def _joined(pieces: Ranges, ends_document: NDArray[np.bool_], which: NDArray[np.bool_]) -> Ranges:
    """Take pieces, and put those that follow each other in one document together again."""
    follows = np.zeros(len(which), dtype=np.bool_)
    follows[1:] = which[1:] & which[:-1] & ~ends_document[:-1]
    first = which & ~follows
    run = np.cumsum(first) - 1
    lengths = np.bincount(run[which], weights=pieces.lengths[which], minlength=int(first.sum())).astype(np.int64)
    return Ranges(pieces.starts[first], lengths)
