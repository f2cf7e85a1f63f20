"""Errors across the hop: the class, the message and the pause, so that a caller gets the status of one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.errors import TEACHER_ERROR_BY_NAME, OverloadedError, TeacherError, TeacherInternalError

_INTERNAL = "an internal fault of the teacher service; its log says more"
# A frame has room for far more; a status shows less.
_MAX_CHARACTERS = 10_000


def tell_error(error: BaseException) -> dict[str, Any]:
    """Return what a frame says of an error; of one that is none of ours nothing but that there was one."""
    if not isinstance(error, TeacherError) or type(error).__name__ not in TEACHER_ERROR_BY_NAME:
        error = TeacherInternalError(_INTERNAL)
    told: dict[str, Any] = {"error": type(error).__name__, "message": str(error)[:_MAX_CHARACTERS]}
    if isinstance(error, OverloadedError):
        told["pause_seconds"] = error.retry_after_seconds
    return told


def read_error(told: Mapping[str, Any]) -> TeacherError:
    """Return the error that was told."""
    kind = TEACHER_ERROR_BY_NAME.get(str(told.get("error")), TeacherInternalError)
    message = str(told.get("message", _INTERNAL))
    if kind is OverloadedError:
        return OverloadedError(message, float(told.get("pause_seconds", 0.1)))
    return kind(message)
