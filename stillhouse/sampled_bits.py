"""Distinct ids and counts of draws, in as few bits as they need: the body of a SAMPLED payload.

Counts: each row has exactly `draws` bits, a count c being c - 1 zeros and a one; the ones of a row are thus its
entries, and no lengths are needed. Ids: binary interpolative codes (Moffat and Stuiver 2000). The middle one of a
row's rising ids comes first, in as many bits as tell it from the others that it could be; then the middle ones of
what is on either side of it, whose bounds it has narrowed; and so on. Ids of real draws crowd where the frequent
tokens are, which costs these codes less than those of gaps, and no bits are wrong: all mean some rising ids below N.
Bits fill bytes from the highest. Knows nothing of headers or tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from stillhouse.errors import CodecError

Int64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_BLOCK_VALUES = 2**14


def pack_counts(counts: Int64, rows: int, draws: int) -> Bytes:
    """Return the counts `[E]` of all rows as `rows * draws` bits; the counts of each row must add up to `draws`."""
    bits = np.zeros(rows * draws, dtype=np.uint8)
    bits[np.cumsum(counts) - 1] = 1
    return np.packbits(bits)


def unpack_counts(data: Bytes, rows: int, draws: int) -> tuple[Int64, Int64]:
    """Return offsets `[rows + 1]` and counts `[E]`.

    Raises:
        CodecError: a row whose counts do not add up to `draws`, or stray bits at the end.
    """
    bits = _unpack_bits(data, rows * draws)
    ends = bits[draws - 1 :: draws] if rows else bits
    if not ends.all():
        raise CodecError(f"the counts of row {int(np.argmin(ends))} do not add up to {draws} draws")
    entries = bits.reshape(rows, draws).sum(axis=1, dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(entries)])
    return offsets, np.diff(np.flatnonzero(bits), prepend=-1)


def pack_ids(ids: Int64, offsets: Int64, width: int) -> Bytes:
    """Return the coded ids `[E]` of all rows, rising within each and below `width`."""
    bits = []
    for places, least, choices in _middles(ids, offsets, width):
        lengths, short = _truncated_binary(choices)
        values = ids[places] - least
        long = values >= short
        values[long] += short[long]
        bits.append(_write(values >> (long & (lengths > 0)), np.maximum(lengths - 1, 0)))
        bits.append((values[long & (lengths > 0)] & 1).astype(np.uint8))
    return np.packbits(np.concatenate([np.zeros(0, dtype=np.uint8), *bits]))


def unpack_ids(data: Bytes, offsets: Int64, width: int) -> Int64:
    """Return the ids `[E]` of all rows, rising within each and below `width`.

    Raises:
        CodecError: too few bits, too many, or stray ones at the end; or rows of more ids than there are.
    """
    if (np.diff(offsets) > width).any():
        raise CodecError(f"a row has {np.diff(offsets).max()} distinct ids, where there are only {width}")
    bits, at = np.unpackbits(data), 0
    ids = np.zeros(int(offsets[-1]), dtype=np.int64)
    for places, least, choices in _middles(ids, offsets, width):
        lengths, short = _truncated_binary(choices)
        values = _read(bits[at:], np.maximum(lengths - 1, 0))
        at += int(np.maximum(lengths - 1, 0).sum())
        long = (values >= short) & (lengths > 0)
        last = bits[at : at + int(long.sum())]
        if len(last) < long.sum():
            raise CodecError("the coded ids end before their last")
        at += len(last)
        values[long] = 2 * values[long] + last - short[long]
        ids[places] = least + values
    if len(bits) - at not in range(8) or bits[at:].any():
        raise CodecError(f"the ids are coded in {at} bits; got {len(bits)}, or stray ones among the last")
    return ids


def _middles(ids: Int64, offsets: Int64, width: int) -> Iterator[tuple[Int64, Int64, Int64]]:
    """Walk through all rows at once, from their middles outwards.

    Yields the places of the ids whose turn it is, the least that each can be, and from how many ids it is one. When
    the next are asked for, `ids` must hold them.
    """
    start, count = offsets[:-1], np.diff(offsets)
    low, high = np.zeros_like(count), np.full_like(count, width - 1)
    while len(count):
        before = count // 2
        after = count - 1 - before
        places = start + before
        # On either side of it there are so many ids more, all different.
        yield places, low + before, high - after - low - before + 1
        middle, left, right = ids[places], before > 0, after > 0
        start = np.concatenate([start[left], places[right] + 1])
        count = np.concatenate([before[left], after[right]])
        low = np.concatenate([low[left], middle[right] + 1])
        high = np.concatenate([middle[left] - 1, high[right]])


def _truncated_binary(choices: Int64) -> tuple[Int64, Int64]:
    """Return the most bits that one of `choices` values takes, and how many of the lowest values take one less."""
    lengths = np.frexp(choices - 1)[1].astype(np.int64)
    return lengths, (1 << lengths) - choices


def _write(values: Int64, lengths: Int64) -> Bytes:
    """Return the lowest bits of each value, so many as its length says, laid end to end, one to an element."""
    none = np.zeros(0, dtype=np.uint8)
    return np.concatenate([none, *(_laid_out(values[part], lengths[part]) for part in _blocks(len(values)))])


def _laid_out(values: Int64, lengths: Int64) -> Bytes:
    return ((np.repeat(values, lengths) >> _exponents(lengths)) & 1).astype(np.uint8)


def _read(bits: Bytes, lengths: Int64) -> Int64:
    """Return the values that `_write` has laid end to end, from the first of the bits on."""
    if int(lengths.sum()) > len(bits):
        raise CodecError("the coded ids end before their last")
    values, at = np.zeros(len(lengths), dtype=np.int64), 0
    for part in _blocks(len(lengths)):
        ends = np.cumsum(lengths[part])
        end = at + int(ends[-1])
        weights = bits[at:end].astype(np.int64) << _exponents(lengths[part])
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(weights)])
        values[part], at = sums[ends] - sums[ends - lengths[part]], end
    return values


def _blocks(count: int) -> Iterator[slice]:
    """Yield so many values in blocks: for every bit of a block there are some 40 bytes for a moment."""
    yield from (slice(start, start + _BLOCK_VALUES) for start in range(0, count, _BLOCK_VALUES))


def _exponents(lengths: Int64) -> Int64:
    """Return what each bit of values laid end to end counts for: in each, from length - 1 down to 0."""
    return np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(int(lengths.sum()))


def _unpack_bits(data: Bytes, count: int) -> Bytes:
    bits = np.unpackbits(data)
    if len(bits) - count not in range(8) or bits[count:].any():
        raise CodecError(f"{count} bits should be in {len(data)} bytes, with zeros after them")
    return bits[:count]
