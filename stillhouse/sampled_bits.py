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
from collections.abc import Sequence as SequenceOf

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
    (ids,) = unpack_many([data], [offsets], width)
    return ids


def unpack_many(datas: SequenceOf[Bytes], offsets: SequenceOf[Int64], width: int) -> list[Int64]:
    """Return what `unpack_ids` does of each, all of them in one walk.

    Raises:
        CodecError: as `unpack_ids`.
    """
    counts = np.concatenate([np.diff(one) for one in offsets])
    if (counts > width).any():
        raise CodecError(f"a row has {counts.max()} distinct ids, where there are only {width}")
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    sizes = [int(one[-1]) for one in offsets]
    reader, ids = _BitReader(datas, sizes), np.zeros(int(ends[-1]), dtype=np.int64)
    for places, least, choices in _middles(ids, ends, width):
        lengths, short = _truncated_binary(choices)
        values = reader.read(places, np.maximum(lengths - 1, 0))
        long = np.flatnonzero((values >= short) & (lengths > 0))
        values[long] = 2 * values[long] + reader.read(places[long], np.ones_like(long)) - short[long]
        ids[places] = least + values
    reader.finish()
    return np.split(ids, np.cumsum(sizes)[:-1])


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


class _BitReader:
    """Reads values that lie end to end in several streams, many at once.

    Each is taken out of the eight bytes from the one on that it starts in, which hold a value of up to 31 bits. The
    places of the ids say whose values they are: those of a stream are neighbours.
    """

    def __init__(self, datas: SequenceOf[Bytes], sizes: SequenceOf[int]) -> None:
        self._data = np.concatenate([*datas, np.zeros(8, dtype=np.uint8)])
        # Eight bytes from every byte on, so that they overlap.
        self._windows = np.ndarray(len(self._data) - 7, dtype=">u8", buffer=self._data, strides=(1,))
        lengths = 8 * np.array([len(data) for data in datas])
        self._ends = np.cumsum(lengths)
        self._begins = self._ends - lengths
        self._at = self._begins.copy()
        self._owners = np.repeat(np.arange(len(datas)), sizes) if len(datas) > 1 else None

    def read(self, places: Int64, lengths: Int64) -> Int64:
        """Return the next values, of these lengths in bits, from 0 to 31, and of the ids at these places."""
        starts = self._next(places, lengths)
        shifts = 64 - (starts & 7) - lengths
        windows = self._windows[starts >> 3].astype(np.uint64)
        values: Int64 = (windows >> shifts.astype(np.uint64)).astype(np.int64) & ((1 << lengths) - 1)
        return values

    def finish(self) -> None:
        """See that nothing is left but the zeros that fill the last byte of each stream."""
        left = self._ends - self._at
        last = self._data[np.maximum(self._ends - 1, 0) >> 3]
        wrong = (left > 7) | ((left > 0) & ((last & ((1 << left) - 1)) != 0))
        if wrong.any():
            first = int(np.argmax(wrong))
            read, given = (int(ends[first] - self._begins[first]) for ends in (self._at, self._ends))
            raise CodecError(f"the ids are coded in {read} bits; got {given}, or stray ones among the last")

    def _next(self, places: Int64, lengths: Int64) -> Int64:
        """Return where the next values start, and pass over them."""
        if self._owners is None:
            ends = np.cumsum(lengths)
            starts: Int64 = self._at[0] + ends - lengths
            self._at += ends[-1] if len(ends) else 0
        else:
            owners = self._owners[places]
            order = np.argsort(owners, kind="stable")
            sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths[order])])
            # Of all bits, those before the first of each stream and after its last.
            bounds = sums[np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(self._at)))])]
            starts = np.empty_like(lengths)
            starts[order] = sums[:-1] + (self._at - bounds[:-1])[owners[order]]
            self._at += np.diff(bounds)
        if (self._at > self._ends).any():
            raise CodecError("the coded ids end before their last")
        return starts


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
