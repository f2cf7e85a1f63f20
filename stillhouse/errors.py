"""Every error that Stillhouse raises on purpose, with the code that each door gives it.

    StillhouseError
    ├── ConfigurationError (ValueError)     settings, recipes, command lines
    ├── DataError (ValueError)              a corpus, or a prepared dataset, that cannot be used
    ├── StoreError                          an offline store that cannot be written or read
    ├── CheckpointError                     a checkpoint that cannot be written or read
    ├── GuardError                          a guard stopped the run
    ├── CodecError (ValueError)             bytes that are no payload
    ├── StreamError                         a stream of chunks that is not a whole answer
    └── TeacherError                        what a teacher answers instead of logits
        ├── InvalidRequestError (ValueError)    INVALID_ARGUMENT     400
        │   └── VocabularyMismatchError         FAILED_PRECONDITION  409
        ├── RequestTooLongError (ValueError)    OUT_OF_RANGE         413
        ├── UnauthenticatedError                UNAUTHENTICATED      401
        ├── PermissionDeniedError               PERMISSION_DENIED    403
        ├── FingerprintMismatchError            FAILED_PRECONDITION  412
        ├── EncodingNotOfferedError             UNIMPLEMENTED        501
        ├── OverloadedError                     RESOURCE_EXHAUSTED   429
        ├── TeacherUnavailableError             UNAVAILABLE          503
        ├── TeacherTimeoutError (TimeoutError)  DEADLINE_EXCEEDED    504
        └── TeacherInternalError                INTERNAL             500

The codes live beside the class, as names and numbers, so that the gRPC and the HTTP door cannot disagree and the
client raises again what the server meant. Knows nothing of gRPC, HTTP or torch.
"""

from __future__ import annotations

from typing import ClassVar


class StillhouseError(Exception):
    """The base of every error raised on purpose."""


class ConfigurationError(StillhouseError, ValueError):
    """A setting that cannot be used; the message names the key, its value and the remedy."""


class DataError(StillhouseError, ValueError):
    """A corpus or prepared dataset that cannot be used; the message names the file and the place in it."""


class StoreError(StillhouseError):
    """An offline store that could not be written, or that is incomplete, altered or made otherwise than is asked."""


class CheckpointError(StillhouseError):
    """A checkpoint that could not be written, or that is incomplete, altered or of another run."""


class GuardError(StillhouseError):
    """A guard stopped the run before it could do harm: a loss that is not finite, a NaN in the weights."""


class CodecError(StillhouseError, ValueError):
    """Bytes that are not a payload: truncated, altered, foreign, or of a newer format."""


class StreamError(StillhouseError):
    """A stream of chunks that ended early, skipped bytes or held more than was announced."""


class TeacherError(StillhouseError):
    """The base of what a teacher answers instead of logits."""

    grpc_code: ClassVar[str] = "UNKNOWN"
    http_status: ClassVar[int] = 500

    request_id: str = ""
    """What the request is called in the teacher's log, where a client raised this."""


class InvalidRequestError(TeacherError, ValueError):
    """Ids, shapes or an encoding that no teacher could serve; the message names the field and the value."""

    grpc_code = "INVALID_ARGUMENT"
    http_status = 400


class VocabularyMismatchError(InvalidRequestError):
    """Teacher and student do not have the same vocabulary; the message names both sizes."""

    grpc_code = "FAILED_PRECONDITION"
    http_status = 409


class RequestTooLongError(TeacherError, ValueError):
    """More sequences, tokens or bytes than this teacher serves at once."""

    grpc_code = "OUT_OF_RANGE"
    http_status = 413


class UnauthenticatedError(TeacherError):
    """No token, or an unknown one."""

    grpc_code = "UNAUTHENTICATED"
    http_status = 401


class PermissionDeniedError(TeacherError):
    """A known token of another scope."""

    grpc_code = "PERMISSION_DENIED"
    http_status = 403


class FingerprintMismatchError(TeacherError):
    """The teacher is not the one that the caller expected."""

    grpc_code = "FAILED_PRECONDITION"
    http_status = 412


class EncodingNotOfferedError(TeacherError):
    """A valid encoding that this teacher does not offer."""

    grpc_code = "UNIMPLEMENTED"
    http_status = 501


class OverloadedError(TeacherError):
    """The queue is full; `retry_after_seconds` says when to come again."""

    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 429

    def __init__(self, message: str, retry_after_seconds: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TeacherUnavailableError(TeacherError):
    """Weights are loading, the service drains, or nobody answers at the address."""

    grpc_code = "UNAVAILABLE"
    http_status = 503


class TeacherTimeoutError(TeacherError, TimeoutError):
    """The answer did not come within the deadline."""

    grpc_code = "DEADLINE_EXCEEDED"
    http_status = 504


class TeacherInternalError(TeacherError):
    """A fault in the service; its log says more than the answer does."""

    grpc_code = "INTERNAL"
    http_status = 500


# What a client raises for a status code. Two classes share FAILED_PRECONDITION: the service names the class in the
# `stillhouse-error` trailer (HTTP: the problem's `type`), and this table serves where that is absent.
ERROR_BY_GRPC_CODE: dict[str, type[TeacherError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "OUT_OF_RANGE": RequestTooLongError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "FAILED_PRECONDITION": FingerprintMismatchError,
    "UNIMPLEMENTED": EncodingNotOfferedError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "UNAVAILABLE": TeacherUnavailableError,
    "DEADLINE_EXCEEDED": TeacherTimeoutError,
    "INTERNAL": TeacherInternalError,
}

TEACHER_ERROR_BY_NAME: dict[str, type[TeacherError]] = {
    error.__name__: error for error in (*ERROR_BY_GRPC_CODE.values(), VocabularyMismatchError)
}
