"""A whole answer read from a stream of bytes, large payloads into memory of their own: none is copied after it came.

What is read is the `ComputeLogitsResponse` of the contract. The caller knows what it asked for, so that no memory is
taken for anything else. Knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Protocol

import numpy as np
from google.protobuf.message import DecodeError

from stillhouse.answer_messages import Buffer, RawAnswer, payload_head, read_answer
from stillhouse.errors import CodecError, StreamError
from stillhouse.payload_header import Header

# Beside its payloads an answer holds timing, a count and a fingerprint.
_MAX_REST_BYTES = 2**16
# A tag and a length, as protobuf writes them.
_MAX_HEAD_BYTES = 11
# A smaller answer is quicker read at once, and its payloads copied out of it.
_LARGE_BYTES = 2**16


class Source(Protocol):
    """What is read from."""

    @property
    def num_bytes(self) -> int | None:
        """Its bytes in all, where that is known."""

    def read(self, most_bytes: int, /) -> bytearray:
        """Return what is left, at most so much of it."""

    def fill(self, views: SequenceOf[memoryview], /) -> None:
        """Fill these with the next bytes of a source of known length."""


def receive_answer(source: Source, expected: SequenceOf[Header]) -> RawAnswer:
    """Return the answer that a source holds.

    Raises:
        StreamError: more is announced, or comes, than can be the answer.
        CodecError: it holds no message of the contract.
    """
    bounds = [header.size_bounds() for header in expected]
    most = sum(largest + _MAX_HEAD_BYTES for _, largest in bounds) + _MAX_REST_BYTES
    announced = source.num_bytes
    if announced is not None and announced > most:
        raise StreamError(f"{announced} bytes are announced, where at most {most} can be the answer")
    sizes = [largest for least, largest in bounds if least == largest]
    least_whole = sum(len(payload_head(size)) + size for size in sizes)
    if len(sizes) < len(bounds) or announced is None or not _LARGE_BYTES < least_whole < announced:
        data = source.read(most + 1)
        if len(data) > most:
            raise StreamError(f"the answer has more than {most} bytes, the most that can be one")
        return _message(memoryview(data))
    heads = [payload_head(size) for size in sizes]
    came = [bytearray(len(head)) for head in heads]
    payloads: list[Buffer] = []
    views: list[memoryview] = []
    for head, size in zip(came, sizes, strict=True):
        payloads.append(np.empty(size, np.uint8).data)
        views += (memoryview(head), memoryview(payloads[-1]))
    source.fill(views)
    if came != heads:
        # Payloads of other sizes, or a message written in another way: whoever decodes it says what is wrong with it.
        return _message(memoryview(b"".join([*views, source.read(most)])))
    rest = _message(memoryview(source.read(most)))
    return RawAnswer([*payloads, *rest.payloads], rest.fingerprint, rest.timing, rest.cache_hits)


def _message(data: Buffer) -> RawAnswer:
    try:
        return read_answer(data)
    except DecodeError as error:
        raise CodecError("the answer is no message of the contract: it was altered on its way") from error
