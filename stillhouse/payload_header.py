"""The 48 bytes before every payload: what it holds, how much of it, and a checksum over all of it.

docs/payload-format.md is the specification. A header says everything about a payload but its values, so two of them
are compared to know whether an answer is the one that was asked for. Knows nothing of tensors.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Self

import xxhash

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, ValueType
from stillhouse.errors import CodecError
from stillhouse.request import LogitsRequest, Sequence, TeacherDescription

MAGIC = b"SHPL"
VERSION = 2

# magic, version, kind, value type, 0, total bytes, rows, width, count, temperature; then the checksum.
_FIELDS = struct.Struct("<4sBBBBQQIId")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size

# Ids are int32 in a tensor.
MAX_WIDTH = 2**31


class Kind(IntEnum):
    """Which class of payload follows."""

    DENSE = 1
    HIDDEN = 2
    TOP_K = 3
    SAMPLED = 4
    CANDIDATES = 5
    POSITION_CANDIDATES = 6
    OUTPUT_HEAD = 7


_VALUE_TYPES: tuple[ValueType, ...] = ("float32", "float16", "bfloat16")
_ALLOWED: dict[Kind, tuple[ValueType | None, ...]] = {
    Kind.DENSE: ("float32", "float16", "bfloat16"),
    Kind.HIDDEN: ("float32", "bfloat16"),
    Kind.TOP_K: ("float32", "float16"),
    Kind.SAMPLED: (None,),
    Kind.CANDIDATES: ("float32", "float16"),
    Kind.POSITION_CANDIDATES: ("float32", "float16"),
    Kind.OUTPUT_HEAD: ("float32", "bfloat16"),
}
_ITEM_BYTES: dict[ValueType | None, int] = {"float32": 4, "float16": 2, "bfloat16": 2, None: 0}


@dataclass(frozen=True, slots=True)
class Header:
    """What a payload holds.

    `rows` is P, or V for OUTPUT_HEAD. `width` is N, or D for HIDDEN and OUTPUT_HEAD. `count` is K for TOP_K and both
    CANDIDATES, the draws for SAMPLED, 1 for an OUTPUT_HEAD with a bias, else 0. `temperature` is 0 where it changes
    nothing (DENSE, HIDDEN and OUTPUT_HEAD). `value_type` is None for SAMPLED.

    Raises:
        CodecError: fields that no payload has.
    """

    kind: Kind
    value_type: ValueType | None
    rows: int
    width: int
    count: int = 0
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.value_type not in _ALLOWED[self.kind]:
            raise CodecError(f"a {self.kind.name} payload cannot hold {self.value_type} values")
        if self.rows < 0 or not 1 <= self.width <= MAX_WIDTH:
            raise CodecError(f"a payload has rows from 0 and a width from 1 to {MAX_WIDTH}; got {self}")
        if self.kind is Kind.OUTPUT_HEAD and not 1 <= self.rows <= MAX_WIDTH:
            raise CodecError(f"an output head has rows from 1 to {MAX_WIDTH}; got {self.rows}")
        if self.kind in (Kind.DENSE, Kind.HIDDEN, Kind.OUTPUT_HEAD):
            if self.count not in ((0, 1) if self.kind is Kind.OUTPUT_HEAD else (0,)) or self.temperature != 0:
                raise CodecError(f"a {self.kind.name} payload has neither count nor temperature; got {self}")
            return
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise CodecError(f"a payload's temperature must be finite and above 0; got {self.temperature}")
        limit = 2**31 - 1 if self.kind is Kind.SAMPLED else self.width
        if not 1 <= self.count <= limit:
            raise CodecError(f"the count of a {self.kind.name} payload must be from 1 to {limit}; got {self.count}")

    @classmethod
    def expected(
        cls, encoding: Encoding, sequence: Sequence, *, temperature: float, vocabulary_size: int, hidden_size: int = 0
    ) -> Self:
        """Return the header of the payload that answers one sequence; `vocabulary_size` is the effective N."""
        rows = sequence.num_positions
        match encoding:
            case Dense(value_type):
                return cls(Kind.DENSE, value_type, rows, vocabulary_size)
            case Hidden(value_type):
                return cls(Kind.HIDDEN, value_type, rows, hidden_size)
            case TopK(k, value_type):
                return cls(Kind.TOP_K, value_type, rows, vocabulary_size, k, float(temperature))
            case Sampled(draws, _):
                return cls(Kind.SAMPLED, None, rows, vocabulary_size, draws, float(temperature))
            case Candidates(token_ids, value_type):
                kind = Kind.CANDIDATES if token_ids else Kind.POSITION_CANDIDATES
                count = len(token_ids) or sequence.num_candidates
                return cls(kind, value_type, rows, vocabulary_size, count, float(temperature))

    def size_bounds(self) -> tuple[int, int]:
        """Return the least and the most bytes that such a payload has; they differ for SAMPLED alone."""
        item, rows, count = _ITEM_BYTES[self.value_type], self.rows, self.count
        match self.kind:
            case Kind.DENSE | Kind.HIDDEN:
                body = rows * self.width * item
            case Kind.TOP_K | Kind.POSITION_CANDIDATES:
                body = rows * (16 + count * (4 + item))
            case Kind.CANDIDATES:
                body = 4 * count + rows * (16 + count * item)
            case Kind.OUTPUT_HEAD:
                body = 16 + rows * (self.width + count) * item
            case Kind.SAMPLED:
                fixed = HEADER_BYTES + 4 * rows + (rows * count + 7) // 8
                # An id takes at most the bits that tell it from all others; where a row has all ids, none.
                id_bits = (self.width - 1).bit_length()
                return fixed, fixed + (rows * min(count, self.width) * id_bits + 7) // 8
        return HEADER_BYTES + body, HEADER_BYTES + body

    def pack(self, body: Iterable[bytes | memoryview], body_bytes: int) -> bytes:
        """Return the 48 bytes that go before `body`."""
        code = 0 if self.value_type is None else 1 + _VALUE_TYPES.index(self.value_type)
        total = HEADER_BYTES + body_bytes
        fields = _FIELDS.pack(
            MAGIC, VERSION, self.kind, code, 0, total, self.rows, self.width, self.count, self.temperature
        )
        return fields + _CHECKSUM.pack(_checksum(fields, body))


def expected_headers(request: LogitsRequest, teacher: TeacherDescription) -> list[Header]:
    """Return the headers of the payloads that answer a request, one for each sequence."""
    vocabulary_size = request.effective_vocabulary_size(teacher.vocabulary_size)
    # Sequences that ask about as much have one header.
    known: dict[tuple[int, int], Header] = {}
    headers = []
    for sequence in request.sequences:
        size = sequence.num_positions, sequence.num_candidates
        header = known.get(size)
        if header is None:
            header = known[size] = Header.expected(
                request.encoding,
                sequence,
                temperature=request.temperature,
                vocabulary_size=vocabulary_size,
                hidden_size=teacher.hidden_size,
            )
        headers.append(header)
    return headers


def read_header(data: memoryview) -> Header:
    """Check that `data` is one whole, unaltered payload, and return its header.

    Raises:
        CodecError: bytes that are not; nothing is allocated before the sizes are known to be true.
    """
    if len(data) < HEADER_BYTES:
        raise CodecError(f"a payload has at least {HEADER_BYTES} bytes; got {len(data)}: it is truncated")
    fields = data[: _FIELDS.size].tobytes()
    magic, version, _, _, _, total, *_ = _FIELDS.unpack(fields)
    if magic != MAGIC:
        raise CodecError(f"a payload starts with {MAGIC!r}; got {magic!r}: these are other bytes")
    if version != VERSION:
        raise CodecError(f"payload format {version} is not known here (this is format {VERSION}): update Stillhouse")
    if total != len(data):
        what = "it is truncated" if total > len(data) else "there are bytes after its end"
        raise CodecError(f"the payload should have {total} bytes; got {len(data)}: {what}")
    (checksum,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
    if checksum != _checksum(fields, (data[HEADER_BYTES:],)):
        raise CodecError("the payload's checksum does not match: it was altered on its way")
    return _described(fields)


# Of the payloads of a run, thousands have the same fields.
@lru_cache(maxsize=256)
def _described(fields: bytes) -> Header:
    """Return what the unaltered fields of a header of this format describe."""
    _, _, kind, code, reserved, total, rows, width, count, temperature = _FIELDS.unpack(fields)
    if reserved:
        raise CodecError(f"the reserved byte of a payload's header must be 0; got {reserved}")
    if kind not in iter(Kind) or code > len(_VALUE_TYPES):
        raise CodecError(f"a payload of kind {kind} with value type {code} is not known here")
    header = Header(Kind(kind), _VALUE_TYPES[code - 1] if code else None, rows, width, count, temperature)
    least, most = header.size_bounds()
    if not least <= total <= most:
        raise CodecError(f"the payload has {total} bytes, where its header describes {least} to {most}: {header}")
    return header


def _checksum(fields: bytes | memoryview, body: Iterable[bytes | memoryview]) -> int:
    # XXH3: at 10 GB/s (zlib's CRC-32: 2) it is never what an answer waits for, and it lets other threads run.
    digest = xxhash.xxh3_64(fields)
    for part in body:
        digest.update(part)
    return digest.intdigest()
