"""What a door asks of whoever answers: the teacher itself, or a front process that stands before it.

A door asks for the description, has a request checked, and is given payload bytes or the bytes of the output head. It
never learns whether the model lies in its own process. Imports no torch, so that a front needs none. Knows nothing of
transports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from stillhouse.answer_messages import RawAnswer
from stillhouse.encodings import ValueType
from stillhouse.errors import RequestTooLongError
from stillhouse.payload_header import Header, expected_headers
from stillhouse.request import LogitsRequest, TeacherDescription
from stillhouse.teacher.v1 import teacher_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """One payload per sequence as bytes, in the order asked. Times in seconds; those of what was computed."""

    payloads: tuple[bytes | memoryview, ...]
    fingerprint: str
    cache_hits: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    encode_seconds: float = 0.0

    @property
    def num_bytes(self) -> int:
        """Bytes of all payloads together."""
        return sum(map(len, self.payloads))

    def timing(self) -> pb.Timing:
        """Return its times as the contract tells them."""
        return pb.Timing(
            queue_seconds=self.queue_seconds,
            compute_seconds=self.compute_seconds,
            encode_seconds=self.encode_seconds,
        )

    def raw(self) -> RawAnswer:
        """Return what the message of it is made of."""
        return RawAnswer(self.payloads, self.fingerprint, self.timing(), self.cache_hits)


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that whoever checked it answers, and what comes back: a header for each payload, and bytes in all."""

    request: LogitsRequest
    headers: tuple[Header, ...]
    most_bytes: int


class Answering(Protocol):
    """Whoever answers requests."""

    @property
    def description(self) -> TeacherDescription:
        """What is served."""

    def check(self, request: LogitsRequest) -> CheckedRequest:
        """Check a request against what is served.

        Raises:
            TeacherError: what it would be answered.
        """

    def answering(self, asked: CheckedRequest) -> AbstractAsyncContextManager[EncodedAnswer]:
        """Answer a request; the answer is sent inside the context, and its bytes are not looked at after it."""


class HeadToSend(Protocol):
    """An output head on its way to one caller."""

    @property
    def num_bytes(self) -> int:
        """Its bytes in all."""

    def chunks(self) -> AsyncIterator[tuple[int, bytes]]:
        """Give the bytes in order, each run with the place where it starts."""


class HeadGiving(Protocol):
    """Whoever gives the output head."""

    def sending(self, value_type: ValueType | None) -> AbstractAsyncContextManager[HeadToSend]:
        """Give the head in float32 or bfloat16, to be sent inside the context; None is what the teacher computes in.

        Raises:
            EncodingNotOfferedError: there is none.
        """


class Serving(Protocol):
    """Where a service stands: it has someone who answers, or says why not."""

    @property
    def teacher(self) -> Answering:
        """Whoever answers.

        Raises:
            TeacherUnavailableError: there is nobody yet, or not any more.
        """

    @property
    def head_bytes(self) -> HeadGiving:
        """Whoever gives the output head.

        Raises:
            TeacherUnavailableError: as `teacher`.
        """


def check_request(request: LogitsRequest, description: TeacherDescription, max_answer_bytes: int) -> CheckedRequest:
    """Check a request against a teacher.

    Raises:
        TeacherError: what it would be answered.
    """
    request.check(description)
    headers = tuple(expected_headers(request, description))
    size = sum(header.size_bounds()[1] for header in headers)
    if size > max_answer_bytes:
        raise RequestTooLongError(
            f"sequences: their answer would have {size} bytes, over this teacher's limit of {max_answer_bytes}; send "
            "several requests, or ask for a sparser encoding"
        )
    return CheckedRequest(request, headers, size)
