"""Errors <-> gRPC statuses: what the service means is what its client raises.

The code stands beside each class in `errors`. Two trailers say what a code cannot: `stillhouse-error` the name of the
class, `grpc-retry-pushback-ms` when to come again. Knows nothing of requests or answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from stillhouse.errors import (
    ERROR_BY_GRPC_CODE,
    TEACHER_ERROR_BY_NAME,
    CodecError,
    OverloadedError,
    RequestTooLongError,
    TeacherError,
    TeacherInternalError,
    TeacherUnavailableError,
)

ERROR_TRAILER = "stillhouse-error"
PUSHBACK_TRAILER = "grpc-retry-pushback-ms"

# Statuses travel as HTTP/2 headers, which gRPC bounds to 8 KiB by default.
_MAX_MESSAGE_CHARACTERS = 2000

# What gRPC's own client says of bytes that came, under a code that otherwise is the service's.
_NO_MESSAGE = "Exception deserializing response!"


@dataclass(frozen=True, slots=True)
class Status:
    """What a servicer hands to `context.abort` (code and message) and `set_trailing_metadata` beforehand."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, str], ...]


def status_of(error: BaseException) -> Status:
    """Return the status that tells a client of `error`.

    Whatever is not a `TeacherError` becomes INTERNAL, with nothing of its message or stack: the log has those.
    """
    if not isinstance(error, TeacherError):
        error = TeacherInternalError("an internal fault of the teacher service; its log says more")
    trailers = [(ERROR_TRAILER, type(error).__name__)]
    if isinstance(error, OverloadedError):
        milliseconds = max(1, math.ceil(error.retry_after_seconds * 1000))
        trailers.append((PUSHBACK_TRAILER, str(milliseconds)))
    code = grpc.StatusCode[error.grpc_code]
    return Status(code, str(error)[:_MAX_MESSAGE_CHARACTERS], tuple(trailers))


class FailedCall(Protocol):
    """What is read of a failed call, sync or asyncio."""

    def code(self) -> grpc.StatusCode | None:
        """Return the status code."""

    def details(self) -> str | None:
        """Return the status message."""

    def trailing_metadata(self) -> Any:  # pairs of str and str or bytes, in a type of each kind of call
        """Return the pairs of keys and values that came with it."""


def error_of(call: FailedCall, address: str) -> TeacherError | CodecError:
    """Return the error that the service at `address` meant by ending a call; `CodecError` for no message at all.

    An `OverloadedError` of a service that named no time to come again has `retry_after_seconds` infinite.
    """
    code = call.code()
    name = "UNKNOWN" if code is None else code.name
    details = call.details() or "no message"
    trailers = {key: value for key, value in call.trailing_metadata() or () if isinstance(value, str)}
    named = TEACHER_ERROR_BY_NAME.get(trailers.get(ERROR_TRAILER, ""))
    if named is not None and named.grpc_code == name:
        # The service's own words: they need no address.
        return _overloaded(details, trailers) if named is OverloadedError else named(details)
    message = f"teacher {address}: {name}: {details}"
    if name == "RESOURCE_EXHAUSTED":
        # gRPC itself uses this code for a message over either side's limit, which is no overload.
        return RequestTooLongError(message) if "larger than max" in details else _overloaded(message, trailers)
    if name == "INTERNAL" and details == _NO_MESSAGE:
        return CodecError(f"teacher {address}: the answer is no message of the contract: it was altered on its way")
    if name == "CANCELLED":
        # What a service does to calls that outlive its drain.
        return TeacherUnavailableError(message)
    return ERROR_BY_GRPC_CODE.get(name, TeacherInternalError)(message)


def _overloaded(message: str, trailers: dict[str, str]) -> OverloadedError:
    pushback = trailers.get(PUSHBACK_TRAILER, "")
    return OverloadedError(message, int(pushback) / 1000 if pushback.isdecimal() else math.inf)
