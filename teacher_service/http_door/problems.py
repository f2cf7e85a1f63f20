"""Errors -> problem details (RFC 9457), one form for whatever the HTTP door refuses.

The status of each error of ours stands beside its class in `stillhouse.errors`. What only HTTP knows (no such path,
another method, a form that is not made here) is Starlette's `HTTPException`.
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus

import structlog
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from stillhouse.errors import (
    OverloadedError,
    TeacherError,
    TeacherInternalError,
    TeacherUnavailableError,
    UnauthenticatedError,
)
from stillhouse.http_forms import ERROR_URN, PROBLEM_TYPE

# Time enough for a replica to take over; how long loading takes is in /readyz.
_UNAVAILABLE_SECONDS = 1.0

# A value that is quoted back may be as long as a body.
_MAX_DETAIL_CHARACTERS = 2000

logger = structlog.get_logger(__name__)


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(description="`urn:stillhouse:error:` and the class of the error, or `about:blank`.")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="The field, its value and the remedy.")
    retry_after_seconds: float | None = Field(
        default=None,
        ge=0,
        description="Where a bound is reached: `retry-after`, which counts whole seconds, to the ms.",
    )


def problem_of(error: BaseException) -> Response:
    """Return the answer that tells of `error`.

    Whatever is not an error that a caller may know of becomes a 500, with nothing of its message or stack: the log has
    those.
    """
    if isinstance(error, HTTPException):
        text = problem_text("about:blank", error.status_code, error.detail)
        return Response(text, error.status_code, error.headers, PROBLEM_TYPE)
    if not isinstance(error, TeacherError):
        logger.error("request_failed", exc_info=error)
        error = TeacherInternalError("an internal fault of the teacher service; its log says more")
    headers: dict[str, str] = {}
    more: dict[str, float] = {}
    if isinstance(error, UnauthenticatedError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, OverloadedError):
        headers["retry-after"] = _seconds(error.retry_after_seconds)
        if math.isfinite(error.retry_after_seconds):
            more["retry_after_seconds"] = round(error.retry_after_seconds, 3)
    if isinstance(error, TeacherUnavailableError):
        headers["retry-after"] = _seconds(_UNAVAILABLE_SECONDS)
    name = type(error).__name__
    text = problem_text(f"{ERROR_URN}{name}", error.http_status, str(error), name.removesuffix("Error"), **more)
    return Response(text, error.http_status, headers, PROBLEM_TYPE)


def problem_text(type_: str, status: int, detail: str, title: str | None = None, **more: float) -> str:
    """Return a problem's JSON: in ASCII, since what is quoted back may be no text that UTF-8 can hold."""
    title = HTTPStatus(status).phrase if title is None else title
    told = {"type": type_, "title": title, "status": status, "detail": detail[:_MAX_DETAIL_CHARACTERS]}
    return json.dumps(told | more)


def _seconds(seconds: float) -> str:
    return str(max(1, math.ceil(seconds))) if math.isfinite(seconds) else "60"
