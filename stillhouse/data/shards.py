"""Token ids that somebody else has written: checked against the vocabulary and cut into documents.

A document ends behind each boundary id (the tokenizer's end-of-sequence token unless told otherwise), and where its
shard ends. Every token is learnt. Knows nothing of files or tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from stillhouse.data.items import Encoded, Item, Tokens
from stillhouse.errors import DataError


def encode_shards(items: Iterable[Item]) -> Iterator[Encoded]:
    """Yield the documents of shards without a tokenizer: no vocabulary to check, no boundary to know by itself.

    Raises:
        DataError: something else than token ids, for which there would have to be a tokenizer.
    """
    for item in items:
        if not isinstance(item, Tokens):
            raise DataError(f"{item.place}: only .bin shards of token ids can be read without a tokenizer; name one")
        yield from cut_shard(item, boundary=None, vocabulary_size=None)


def cut_shard(item: Tokens, *, boundary: int | None, vocabulary_size: int | None) -> Iterator[Encoded]:
    """Yield the documents, or pieces of them, that a stretch of a shard holds.

    Args:
        item: the stretch.
        boundary: the id behind which a document ends, if there is one.
        vocabulary_size: ids at or above it are refused, if given.

    Raises:
        DataError: an id outside the vocabulary; the message names it and its place.
    """
    token_ids = item.token_ids
    if vocabulary_size is not None and token_ids.size and int(token_ids.max()) >= vocabulary_size:
        at = int(np.argmax(token_ids >= vocabulary_size))
        raise DataError(
            f"{item.place}, id {item.offset + at} (byte {4 * (item.offset + at)}): {token_ids[at]} is outside the "
            f"tokenizer's vocabulary of {vocabulary_size}; the shard was written with another tokenizer, or its ids "
            "are not little-endian u32"
        )
    ends = np.flatnonzero(token_ids == boundary) + 1 if boundary is not None else np.empty(0, dtype=np.int64)
    start = 0
    for end in ends.tolist():
        yield Encoded(item.place, token_ids[start:end], np.ones(end - start, dtype=np.bool_))
        start = end
    if start < len(token_ids) or item.last:
        rest = token_ids[start:]
        yield Encoded(item.place, rest, np.ones(len(rest), dtype=np.bool_), item.last)
