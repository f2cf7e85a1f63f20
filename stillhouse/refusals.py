"""What a teacher refuses over HTTP -> the error that it meant; its gRPC counterpart is `status`.

The class is named by the problem's `type` (RFC 9457), and where that is absent, as from a proxy, by the status. Knows
nothing of connections.
"""

from __future__ import annotations

import json
import math
from typing import Any

from stillhouse.errors import (
    TEACHER_ERROR_BY_NAME,
    OverloadedError,
    TeacherError,
    TeacherInternalError,
    TeacherTimeoutError,
    TeacherUnavailableError,
)
from stillhouse.http_forms import ERROR_URN

MAX_REFUSAL_BYTES = 2**16
"""As much is read of a refusal: the detail of one of ours has at most 2,000 characters."""

_MAX_DETAIL_CHARACTERS = 2000

# Each class has a status of its own; the last two are what proxies answer for a teacher that is away.
_BY_STATUS = {error.http_status: error for error in TEACHER_ERROR_BY_NAME.values()} | {
    502: TeacherUnavailableError,
    408: TeacherTimeoutError,
}


def error_of_refusal(status: int, retry_after: str | None, body: bytes, address: str) -> TeacherError:
    """Return the error that the service at `address` meant by an answer of this status.

    An `OverloadedError` of a service that named no time to come again has `retry_after_seconds` infinite.
    """
    problem = _problem(body)
    name = str(problem.get("type", "")).removeprefix(ERROR_URN)
    detail = str(problem.get("detail") or "no message")[:_MAX_DETAIL_CHARACTERS]
    named = TEACHER_ERROR_BY_NAME.get(name)
    if named is not None and named.http_status == status:
        # The service's own words: they need no address.
        return _overloaded(detail, retry_after, problem) if named is OverloadedError else named(detail)
    message = f"teacher {address}: HTTP {status}: {detail}"
    error = _BY_STATUS.get(status, TeacherInternalError)
    return _overloaded(message, retry_after, problem) if error is OverloadedError else error(message)


def _overloaded(message: str, retry_after: str | None, problem: dict[str, Any]) -> OverloadedError:
    exact = problem.get("retry_after_seconds")
    if isinstance(exact, int | float) and 0 <= exact < math.inf:
        return OverloadedError(message, float(exact))
    if retry_after is not None and retry_after.isdecimal() and len(retry_after) < 10:
        return OverloadedError(message, float(retry_after))
    return OverloadedError(message, math.inf)


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}
