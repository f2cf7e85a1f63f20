"""Distinct ids and counts of draws, in as few bits as they need: the body of a SAMPLED payload.

Counts: each row has exactly `draws` bits, a count c being c - 1 zeros and a one; the ones of a row are thus its
entries, and no lengths are needed. Ids: the gaps between the rising ids of a row (the first from 0) are Rice coded
with one parameter for the payload, `gap_bits`: the low bits of all gaps laid end to end, then the rest of each as
that many zeros and a one. Bits fill bytes from the highest. Knows nothing of headers or tensors.
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
    gap_bits = min(range(_MAX_GAP_BITS + 1), key=lambda bits: bits * len(gaps) + int((gaps >> bits).sum()))
    low = (gaps[:, None] >> np.arange(gap_bits - 1, -1, -1)) & 1
    ends = np.cumsum((gaps >> gap_bits) + 1)
    high = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    high[ends - 1] = 1
    return gap_bits, np.concatenate([np.packbits(low.astype(np.uint8)), np.packbits(high)])


def unpack_ids(data: Bytes, offsets: Int64, gap_bits: int) -> Int64:
    """Return the ids `[E]`, rising within each row.

    Raises:
        CodecError: too few or too many gaps, or stray bits at the end.
    """
    entries = int(offsets[-1])
    low_bytes = (entries * gap_bits + 7) // 8
    if low_bytes > len(data):
        raise CodecError(f"{entries} ids need {low_bytes} bytes for their low bits alone; got {len(data)}")
    low = _unpack_bits(data[:low_bytes], entries * gap_bits).reshape(entries, gap_bits).astype(np.int64)
    ends = np.flatnonzero(np.unpackbits(data[low_bytes:]))
    if len(ends) != entries or len(data) - low_bytes != (int(ends[-1]) // 8 + 1 if entries else 0):
        raise CodecError(f"the coded gaps are not those of {entries} ids")
    high = np.diff(ends, prepend=-1) - 1
    if entries and high.max() > 2**31 >> gap_bits:
        raise CodecError("a coded gap is wider than any vocabulary")
    gaps = (high << gap_bits) + low @ (1 << np.arange(gap_bits - 1, -1, -1))
    # An id is the sum of its row's gaps so far, and one more for each id before it in the row.
    steps = np.cumsum(gaps + 1)
    before = np.concatenate([np.zeros(1, dtype=np.int64), steps])[offsets[:-1]]
    ids: Int64 = steps - np.repeat(before, np.diff(offsets)) - 1
    return ids


def _unpack_bits(data: Bytes, count: int) -> Bytes:
    bits = np.unpackbits(data)
    if len(bits) - count not in range(8) or bits[count:].any():
        raise CodecError(f"{count} bits should be in {len(data)} bytes, with zeros after them")
    return bits[:count]
