"""When a call is tried again, how long to wait before, and when to give up.

The one layer of retries: gRPC's own, switched off, knows neither the deadline of the whole call nor how to begin anew a
stream that broke off, nor that an answer came damaged. Tried again is what may succeed later: nobody answered
(UNAVAILABLE), the queue was full and the service said when to come again (RESOURCE_EXHAUSTED with pushback), or the
bytes were damaged on their way. Knows nothing of what is called.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, TypeVar

import tenacity

from stillhouse.errors import CodecError, OverloadedError, StreamError, TeacherUnavailableError
from stillhouse.request_ids import current_request_id

FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0

LEAST_TIMEOUT_SECONDS = 0.001
"""What a last attempt is given at least, where the deadline has all but come."""

# Bytes that come damaged a third time are no accident of the way.
MAX_DAMAGED_ANSWERS = 3

_logger = logging.getLogger("stillhouse.client")

_R = TypeVar("_R")

# Doubles from attempt to attempt; drawn at random below that, so that many workers do not come back at once.
_backoff = tenacity.wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)


class Retries:
    """The retries of one call: at most so many attempts, and none that could only begin after the deadline."""

    def __init__(
        self, address: str, *, max_attempts: int, timeout_seconds: float, on_retry: Callable[[BaseException], None]
    ) -> None:
        """Begin a call; `on_retry` is told of each error after which it is tried again."""
        self._address = address
        self._max_attempts = max_attempts
        self._timeout_seconds = timeout_seconds
        self._on_retry = on_retry
        self._damaged = 0

    @staticmethod
    def resuming(error: BaseException, again: Callable[[], _R]) -> Callable[[], _R]:
        """Return what fails as a first attempt has that was made before, and from then on does `again`.

        So that a call that succeeds at once, as nearly all do, is spared what a retrying costs.
        """
        errors = [error]

        def attempt() -> _R:
            # Not kept: what the failed attempt held would live until Python looks for cycles.
            if errors:
                raise errors.pop()
            return again()

        return attempt

    def options(self) -> dict[str, Any]:
        """Return the arguments of a `tenacity` retrying, sync or asyncio."""
        return {
            "stop": tenacity.stop_after_attempt(self._max_attempts) | tenacity.stop_before_delay(self._timeout_seconds),
            "wait": _wait_seconds,
            "retry": tenacity.retry_if_exception(self._may_succeed_later),
            "before_sleep": self._begin_again,
            "reraise": True,
        }

    def _may_succeed_later(self, error: BaseException) -> bool:
        match error:
            case OverloadedError():
                return math.isfinite(error.retry_after_seconds)
            case CodecError() | StreamError():
                self._damaged += 1
                return self._damaged < MAX_DAMAGED_ANSWERS
            case _:
                return isinstance(error, TeacherUnavailableError)

    def _begin_again(self, state: tenacity.RetryCallState) -> None:
        error = _exception_of(state)
        if error is not None:
            self._on_retry(error)
        _logger.warning(
            "teacher %s: request %s: attempt %d of %d failed, the next in %.1f s: %s",
            self._address,
            current_request_id() or "-",
            state.attempt_number,
            self._max_attempts,
            state.upcoming_sleep,
            error,
        )


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    error = _exception_of(state)
    pushback = error.retry_after_seconds if isinstance(error, OverloadedError) else FIRST_WAIT_SECONDS / 2
    return pushback + _backoff(state)


def _exception_of(state: tenacity.RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()
