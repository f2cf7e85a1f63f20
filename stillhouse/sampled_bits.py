"""Distinct ids and counts of draws, in as few bits as they need: the body of a SAMPLED payload.

Counts: each row has exactly `draws` bits, a count c being c - 1 zeros and a one; the ones of a row are thus its
entries, and no lengths are needed. Ids: the gaps between the rising ids of a row (the first from 0) in exponential
Golomb codes of one order for the payload, `gap_bits`: gap + 2^gap_bits is a one and n more bits; n - gap_bits zeros
and a one say how many, for all gaps laid end to end, and then come those bits of each. Gaps spread over many orders of
magnitude (frequent tokens have low ids), which is what these codes are for: on real draws they take a bit less each
than Rice codes. Bits fill bytes from the highest. Knows nothing of headers or tensors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stillhouse.errors import CodecError

Int64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_MAX_GAP_BITS = 31


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


def pack_ids(token_ids: Int64, offsets: Int64) -> tuple[int, Bytes]:
    """Return the gap bits that cost least, and the coded gaps of `token_ids` `[E]`, rising within each row."""
    gaps = np.diff(token_ids, prepend=-1) - 1
    starts = offsets[:-1]
    gaps[starts] = token_ids[starts]
    # From the widest gap's own length on, every further bit is one more for each gap.
    widest = int(gaps.max()).bit_length() if len(gaps) else 0
    gap_bits = min(range(widest + 1), key=lambda bits: int((2 * _tail_bits(gaps + (1 << bits)) - bits).sum()))
    values = gaps + (1 << gap_bits)
    tails = _tail_bits(values)
    ends = np.cumsum(tails - gap_bits + 1)
    lengths = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    lengths[ends - 1] = 1
    bits = (np.repeat(values, tails) >> _places(tails)) & 1
    return gap_bits, np.concatenate([np.packbits(lengths), np.packbits(bits.astype(np.uint8))])


def unpack_ids(data: Bytes, offsets: Int64, gap_bits: int) -> Int64:
    """Return the ids `[E]`, rising within each row.

    Raises:
        CodecError: too few or too many gaps, or stray bits at the end.
    """
    entries = int(offsets[-1])
    bits = np.unpackbits(data)
    ends = np.flatnonzero(bits)[:entries]
    if len(ends) < entries:
        raise CodecError(f"the coded gaps are fewer than those of {entries} ids")
    length_bytes = int(ends[-1]) // 8 + 1 if entries else 0
    tails = np.diff(ends, prepend=-1) - 1 + gap_bits
    if entries and (tails.max() > _MAX_GAP_BITS or bits[ends[-1] + 1 : 8 * length_bytes].any()):
        raise CodecError("a coded gap is wider than any vocabulary, or stray bits follow the lengths of the gaps")
    tail_bits = _unpack_bits(data[length_bytes:], int(tails.sum())).astype(np.int64)
    sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(tail_bits << _places(tails))])
    gap_ends = np.cumsum(tails)
    gaps = sums[gap_ends] - sums[gap_ends - tails] + (1 << tails) - (1 << gap_bits)
    # An id is the sum of its row's gaps so far, and one more for each id before it in the row.
    steps = np.cumsum(gaps + 1)
    before = np.concatenate([np.zeros(1, dtype=np.int64), steps])[offsets[:-1]]
    ids: Int64 = steps - np.repeat(before, np.diff(offsets)) - 1
    return ids


def _tail_bits(values: Int64) -> Int64:
    """Return how many bits follow the highest one of each value from 1 to 2^32."""
    return np.frexp(values)[1].astype(np.int64) - 1


def _places(tails: Int64) -> Int64:
    """Return, for the bits of all tails laid end to end, the place of each in its value: n - 1 down to 0."""
    ends = np.cumsum(tails)
    return np.repeat(ends, tails) - 1 - np.arange(int(ends[-1]) if len(ends) else 0)


def _unpack_bits(data: Bytes, count: int) -> Bytes:
    bits = np.unpackbits(data)
    if len(bits) - count not in range(8) or bits[count:].any():
        raise CodecError(f"{count} bits should be in {len(data)} bytes, with zeros after them")
    return bits[:count]
