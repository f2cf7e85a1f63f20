"""Answers <-> the bytes of the messages that carry them, without the copies that protobuf makes of a payload.

On the wire they are the `ComputeLogitsResponse` and `StreamLogitsResponse` of the contract, to the byte. A payload is
copied once into the message that leaves, and what arrives is looked at where it lies. Only the plain form of a field of
payload bytes is read here; whatever else a message holds is protobuf's to read or to refuse. Knows nothing of what the
payload bytes mean, nor of gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import lru_cache

from stillhouse.teacher.v1 import teacher_service_pb2 as pb

Buffer = bytes | bytearray | memoryview

# A field starts with its number times 8, and 2 where its length follows, 0 where a number does.
_LENGTH_FOLLOWS, _NUMBER_FOLLOWS = 2, 0
_PAYLOAD = pb.ComputeLogitsResponse.PAYLOADS_FIELD_NUMBER << 3 | _LENGTH_FOLLOWS
_CHUNK = pb.StreamLogitsResponse.CHUNK_FIELD_NUMBER << 3 | _LENGTH_FOLLOWS
_OFFSET = pb.StreamChunk.OFFSET_FIELD_NUMBER << 3 | _NUMBER_FOLLOWS
_DATA = pb.StreamChunk.DATA_FIELD_NUMBER << 3 | _LENGTH_FOLLOWS


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """The payloads of an answer as bytes, in the order asked, and what is said of them."""

    payloads: SequenceOf[Buffer]
    fingerprint: str
    timing: pb.Timing
    cache_hits: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of bytes of the payloads laid end to end, and where in them it starts."""

    offset: int
    data: Buffer


def write_answer(answer: RawAnswer) -> bytes:
    """Return the message of a whole answer."""
    return b"".join(answer_parts(answer))


def answer_parts(answer: RawAnswer) -> list[Buffer]:
    """Return the message of a whole answer as what it is joined of, its payloads where they lie."""
    rest = pb.ComputeLogitsResponse(
        fingerprint=answer.fingerprint, timing=answer.timing, cache_hits=answer.cache_hits
    ).SerializeToString()
    parts: list[Buffer] = []
    for payload in answer.payloads:
        parts += (payload_head(len(payload)), payload)
    return [*parts, rest]


def read_answer(data: Buffer) -> RawAnswer:
    """Return the answer that a message holds; its payloads are views of the message.

    Raises:
        google.protobuf.message.DecodeError: bytes that are no such message.
    """
    view, at, payloads = memoryview(data), 0, list[Buffer]()
    while at < len(data) and data[at] == _PAYLOAD:
        field = _length(data, at + 1)
        if field is None:
            break
        start, end = field
        payloads.append(view[start:end])
        at = end
    # Whatever order the fields come in: a message is the same as its parts one after the other.
    rest = pb.ComputeLogitsResponse.FromString(bytes(view[at:]))
    return RawAnswer([*payloads, *rest.payloads], rest.fingerprint, rest.timing, rest.cache_hits)


def write_chunk(offset: int, parts: SequenceOf[Buffer]) -> bytes:
    """Return the message of a chunk, at least one byte, whose bytes come in parts."""
    num_bytes = sum(map(len, parts))
    head = (_number(_OFFSET) + _number(offset) if offset else b"") + _number(_DATA) + _number(num_bytes)
    return b"".join([_number(_CHUNK), _number(len(head) + num_bytes), head, *parts])


def read_stream_message(data: bytes) -> pb.StreamLogitsResponse | Chunk:
    """Return what a message of a stream holds: a `Chunk`, whose bytes are a view of the message, or another part.

    Raises:
        google.protobuf.message.DecodeError: bytes that are no such message.
    """
    chunk = _plain_chunk(data)
    if chunk is not None:
        return chunk
    message = pb.StreamLogitsResponse.FromString(data)
    return Chunk(message.chunk.offset, message.chunk.data) if message.WhichOneof("part") == "chunk" else message


def _plain_chunk(data: bytes) -> Chunk | None:
    """Return the chunk that a message holds, and nothing beside it."""
    whole = _length(data, 1) if data[:1] == _number(_CHUNK) else None
    if whole is None or whole[1] != len(data):
        return None
    at, offset = whole[0], 0
    if at < len(data) and data[at] == _OFFSET:
        number = _read_number(data, at + 1)
        if number is None:
            return None
        offset, at = number
    if at >= len(data) or data[at] != _DATA:
        return None
    field = _length(data, at + 1)
    if field is None or field[1] != len(data):
        return None
    return Chunk(offset, memoryview(data)[field[0] :])


@lru_cache(maxsize=64)  # the payloads of an answer mostly have one length
def payload_head(num_bytes: int) -> bytes:
    """Return what stands in a message before a payload of this length."""
    return _number(_PAYLOAD) + _number(num_bytes)


def _number(value: int) -> bytes:
    """Return a number as protobuf writes it: seven bits to a byte, the lowest first, the eighth where more follow."""
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _read_number(data: Buffer, at: int) -> tuple[int, int] | None:
    """Return the number that starts there, and where it ends; None where it is not written as `_number` does.

    Only numbers of up to nine bytes, 63 bits.
    """
    value = 0
    for index, byte in enumerate(data[at : at + 9]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return (value, at + index + 1) if byte or not index else None
    return None


def _length(data: Buffer, at: int) -> tuple[int, int] | None:
    """Return the start and the end of the bytes whose length stands there; None unless they are all there."""
    number = _read_number(data, at)
    if number is None:
        return None
    length, start = number
    return (start, start + length) if start + length <= len(data) else None
