"""Payload <-> bytes: versioned, self-describing, checksummed.

docs/payload-format.md is the specification. Bytes that are truncated, altered, foreign or of a newer format raise
`CodecError`; they never become another tensor. Knows nothing of requests, caches or transports.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillhouse.errors import CodecError
from stillhouse.head_codec import decode_output_head, encode_output_head
from stillhouse.payload_header import HEADER_BYTES, Header, Kind, read_header
from stillhouse.payloads import (
    CandidateLogits,
    DenseLogits,
    HiddenStates,
    Payload,
    SampledCounts,
    TopKLogits,
)
from stillhouse.runs import runs_within
from stillhouse.sampled_bits import pack_counts, pack_ids, unpack_counts, unpack_many
from stillhouse.tensor_bytes import DTYPES, VALUE_TYPES, TensorReader, bytes_of, expect, require_little_endian

# Each id of a row takes some hundred bytes for a moment.
_ROWS_AT_ONCE = 1024

__all__ = [
    "Draft",
    "check_payload",
    "decode_output_head",
    "decode_payload",
    "decode_payloads",
    "decode_with_headers",
    "encode_output_head",
    "encode_payload",
    "header_of",
    "verify_payload",
]


def encode_payload(payload: Payload) -> bytes:
    """Return the bytes of a payload; the same payload gives the same bytes, on any device.

    Raises:
        CodecError: tensors whose shapes, dtypes or ids contradict each other.
    """
    require_little_endian()
    header = check_payload(payload)
    if isinstance(payload, SampledCounts):
        offsets, ids = payload.offsets.cpu().numpy(), payload.token_ids.cpu().numpy().astype(np.int64)
        counts = pack_counts(payload.counts.cpu().numpy().astype(np.int64), header.rows, header.count)
        coded = pack_ids(ids, offsets, header.width)
        body = [bytes_of(payload.entropy), counts.data, coded.data]
    else:
        body = [bytes_of(tensor) for tensor in _tensors(payload)]
    return b"".join([header.pack(body, sum(map(len, body))), *body])


@dataclass(frozen=True, slots=True)
class Draft:
    """A payload whose tensors lie in the bytes that become it: who fills them needs no copy to encode it.

    Of every kind but SAMPLED, whose size follows from its values.
    """

    payload: Payload
    _header: Header
    _bytes: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, header: Header) -> Self:
        """Return one that has this header, its tensors on the host and not yet filled."""
        require_little_endian()
        _, num_bytes = header.size_bounds()
        data = np.empty(num_bytes, np.uint8)
        return cls(_decode_body(header, TensorReader(data.data, HEADER_BYTES)), header, data)

    def seal(self) -> memoryview:
        """Return its bytes, once its tensors are filled with what `encode_payload` would accept."""
        body = self._bytes[HEADER_BYTES:].data
        self._bytes[:HEADER_BYTES] = np.frombuffer(self._header.pack([body], len(body)), np.uint8)
        return self._bytes.data.toreadonly()


def decode_payload(data: bytes | bytearray | memoryview) -> Payload:
    """Return the payload that `data` holds.

    A writable buffer (a bytearray) is not copied: the tensors share it and keep it alive, and writing to one writes
    to the other. A read-only one (bytes) is copied once, since a tensor can always be written to.

    Raises:
        CodecError: anything but the whole, unaltered bytes of one payload of a known format.
    """
    (payload,) = decode_payloads([data])
    return payload


def decode_payloads(datas: SequenceOf[bytes | bytearray | memoryview]) -> list[Payload]:
    """Return what `decode_payload` does of each; coded ids are read together, which is quicker.

    Raises:
        CodecError: as `decode_payload`.
    """
    return [payload for _, payload in decode_with_headers(datas)]


def decode_with_headers(datas: SequenceOf[bytes | bytearray | memoryview]) -> list[tuple[Header, Payload]]:
    """Return what `decode_payloads` does, each payload with its header.

    Raises:
        CodecError: as `decode_payload`.
    """
    require_little_endian()
    views = [memoryview(data).cast("B") for data in datas]
    headers = list(map(read_header, views))
    if any(header.kind is Kind.OUTPUT_HEAD for header in headers):
        raise CodecError("an output head is no answer: decode_output_head reads it")
    readers = [TensorReader(view, HEADER_BYTES) for view in views]
    payloads: list[Payload] = []
    if {header.kind for header in headers} == {Kind.SAMPLED} and len({header.width for header in headers}) == 1:
        for run in runs_within([header.rows for header in headers], _ROWS_AT_ONCE):
            payloads += _decode_sampled(headers[run], readers[run])
    else:
        payloads += map(_decode_body, headers, readers)
    for payload in payloads:
        _check_values(payload)
    return list(zip(headers, payloads, strict=True))


def verify_payload(data: bytes | bytearray | memoryview) -> Header:
    """Check that `data` is one whole, unaltered payload without decoding it, and return its header.

    Raises:
        CodecError: as `decode_payload` does for everything but the values themselves.
    """
    return read_header(memoryview(data).cast("B"))


def check_payload(payload: Payload) -> Header:
    """Check that a payload, wherever it came from, is one that could be encoded, and return its header.

    Raises:
        CodecError: tensors whose shapes, dtypes or ids contradict each other.
    """
    header = header_of(payload)
    _check_values(payload)
    return header


def header_of(payload: Payload) -> Header:
    """Return the header of a payload.

    Raises:
        CodecError: tensors whose shapes or dtypes contradict each other.
    """
    match payload:
        case DenseLogits(logits):
            expect("logits", logits, (None, None), *VALUE_TYPES)
            return Header(Kind.DENSE, VALUE_TYPES[logits.dtype], *logits.shape)
        case HiddenStates(hidden):
            expect("hidden", hidden, (None, None), *VALUE_TYPES)
            return Header(Kind.HIDDEN, VALUE_TYPES[hidden.dtype], *hidden.shape)
        case TopKLogits():
            logits = payload.logits
            expect("logits", logits, (None, None), *VALUE_TYPES)
            expect("token_ids", payload.token_ids, tuple(logits.shape), torch.int32)
            _expect_statistics(payload)
            kind, rows, count = Kind.TOP_K, *logits.shape
        case CandidateLogits():
            logits = payload.logits
            expect("logits", logits, (None, None), *VALUE_TYPES)
            shared = payload.token_ids.dim() == 1
            expect("token_ids", payload.token_ids, tuple(logits.shape)[1 if shared else 0 :], torch.int32)
            _expect_statistics(payload)
            kind, rows, count = Kind.CANDIDATES if shared else Kind.POSITION_CANDIDATES, *logits.shape
        case SampledCounts():
            expect("entropy", payload.entropy, (None,), torch.float32)
            expect("offsets", payload.offsets, (payload.num_positions + 1,), torch.int64)
            expect("token_ids", payload.token_ids, (None,), torch.int32)
            expect("counts", payload.counts, tuple(payload.token_ids.shape), torch.int32)
            n, temperature = payload.vocabulary_size, float(payload.temperature)
            return Header(Kind.SAMPLED, None, payload.num_positions, n, payload.draws, temperature)
    value_type = VALUE_TYPES[logits.dtype]
    return Header(kind, value_type, rows, payload.vocabulary_size, count, float(payload.temperature))


def _tensors(payload: DenseLogits | HiddenStates | TopKLogits | CandidateLogits) -> tuple[Tensor, ...]:
    """Return the tensors of a body in the order in which they are written, the widest elements first."""
    match payload:
        case DenseLogits(tensor) | HiddenStates(tensor):
            return (tensor,)
        case TopKLogits() | CandidateLogits():
            tempered = (payload.tempered_log_normalizer, payload.tempered_log_tail_mass)
            return (payload.token_ids, payload.log_normalizer, payload.log_tail_mass, *tempered, payload.logits)


def _decode_body(header: Header, reader: TensorReader) -> Payload:
    if header.value_type is None:
        return _decode_sampled([header], [reader])[0]
    rows, width, count = header.rows, header.width, header.count
    dtype, statistics = DTYPES[header.value_type], (torch.float32, rows)
    if header.kind is Kind.DENSE:
        return DenseLogits(reader.take(dtype, rows, width))
    if header.kind is Kind.HIDDEN:
        return HiddenStates(reader.take(dtype, rows, width))
    # Keyword arguments are evaluated as they stand: in the order of the bytes.
    payload_class = TopKLogits if header.kind is Kind.TOP_K else CandidateLogits
    return payload_class(
        token_ids=reader.take(torch.int32, *((count,) if header.kind is Kind.CANDIDATES else (rows, count))),
        log_normalizer=reader.take(*statistics),
        log_tail_mass=reader.take(*statistics),
        tempered_log_normalizer=reader.take(*statistics),
        tempered_log_tail_mass=reader.take(*statistics),
        logits=reader.take(dtype, rows, count),
        temperature=header.temperature,
        vocabulary_size=width,
    )


def _decode_sampled(headers: SequenceOf[Header], readers: SequenceOf[TensorReader]) -> list[SampledCounts]:
    entropies, offsets, counts = [], [], []
    for header, reader in zip(headers, readers, strict=True):
        rows, draws = header.rows, header.count
        entropies.append(reader.take(torch.float32, rows))
        some_offsets, some_counts = unpack_counts(reader.take_bytes((rows * draws + 7) // 8), rows, draws)
        offsets.append(some_offsets)
        counts.append(some_counts)
    ids = unpack_many([reader.take_bytes() for reader in readers], offsets, headers[0].width)
    return [
        SampledCounts(
            offsets=torch.from_numpy(offsets[index]),
            token_ids=torch.from_numpy(ids[index]).int(),
            counts=torch.from_numpy(counts[index]).int(),
            entropy=entropies[index],
            draws=header.count,
            temperature=header.temperature,
            vocabulary_size=header.width,
        )
        for index, header in enumerate(headers)
    ]


def _check_values(payload: Payload) -> None:
    match payload:
        case TopKLogits(token_ids=ids, vocabulary_size=n):
            _check_ids(ids, n)
        case CandidateLogits(token_ids=ids, vocabulary_size=n):
            _check_ids(ids, n)
            if (ids.diff(dim=-1) <= 0).any():
                raise CodecError("the token_ids of candidates must be strictly increasing")
        case SampledCounts():
            _check_sampled(payload)
        case DenseLogits() | HiddenStates():
            pass


def _check_ids(ids: Tensor, vocabulary_size: int) -> None:
    if ids.numel() == 0:
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= vocabulary_size:
        raise CodecError(f"token_ids must be from 0 to below N = {vocabulary_size}; got {low} to {high}")


def _check_sampled(payload: SampledCounts) -> None:
    offsets, ids, counts = payload.offsets, payload.token_ids, payload.counts
    lengths = offsets.diff()
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(ids) or (lengths < 1).any():
        raise CodecError(f"offsets must rise from 0 to the number of entries, {len(ids)}")
    _check_ids(ids, payload.vocabulary_size)
    rising = ids[1:] > ids[:-1]
    rising[offsets[1:-1] - 1] = True  # between rows, ids may fall
    if not rising.all():
        raise CodecError("token_ids must be strictly increasing within each row")
    drawn = torch.cat([counts.new_zeros(1, dtype=torch.int64), counts.cumsum(0)])[offsets].diff()
    if (counts < 1).any() or (drawn != payload.draws).any():
        raise CodecError(f"counts must be at least 1 and add up to {payload.draws} draws in each row")


def _expect_statistics(payload: TopKLogits | CandidateLogits) -> None:
    for name in ("log_normalizer", "log_tail_mass", "tempered_log_normalizer", "tempered_log_tail_mass"):
        expect(name, getattr(payload, name), (payload.num_positions,), torch.float32)
