"""Waits for a teacher that is away: the one layer that does so in a run or a capture, within bounds, told in the log.

The client below it tries a call again at most `CLIENT_ATTEMPTS` times, within a second, so that a hiccup of the network
is no event and an outage is told of here at once. Knows nothing of what is asked.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TypeVar

import structlog
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential
from tenacity.nap import sleep_using_event

from stillhouse.errors import (
    OverloadedError,
    TeacherError,
    TeacherInternalError,
    TeacherTimeoutError,
    TeacherUnavailableError,
)
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest

_R = TypeVar("_R")

AWAY = (OverloadedError, TeacherTimeoutError, TeacherUnavailableError, TeacherInternalError)
"""What waiting can mend. A teacher that answers otherwise (wrong token, wrong request) would answer so again."""

CLIENT_ATTEMPTS = 3
"""Of the `TeacherClient` below: as many damaged answers as are no accident of the way."""

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0

_log = structlog.get_logger(__name__)

_backoff = wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)


class Interrupted(Exception):  # noqa: N818 - nothing went wrong: the run was asked to stop
    """The run was asked to stop while it waited for the teacher."""


class TeacherAwayError(TeacherError):
    """The teacher was away for longer than the run waits: to be started again, it may be back by then."""


class PatientTeacher:
    """Asks a teacher, waiting with backoff while it is away.

    Args:
        teacher: whom to ask; used from several threads.
        wait_seconds: how long it may be away before the run gives up.
        stopping: set when the run is to end; ends every wait.
    """

    def __init__(self, teacher: TeacherLogitsProvider, wait_seconds: float, stopping: threading.Event) -> None:
        self._teacher = teacher
        self._wait_seconds = wait_seconds
        self._stopping = stopping

    def answer(self, request: LogitsRequest) -> Answer:
        """Return the answer.

        Raises:
            TeacherAwayError: it stayed away too long.
            TeacherError: it refuses the request, the token or us.
            Interrupted: the run is to stop.
        """
        return self.call(lambda: self._teacher.answer(request))

    def call(self, ask: Callable[[], _R]) -> _R:
        """Return what `ask` does, with the waits and errors of `answer`."""
        retrying = Retrying(
            retry=retry_if_exception(_may_come_back),
            stop=stop_after_delay(self._wait_seconds),
            wait=_wait_seconds,
            before_sleep=self._before_sleep,
            sleep=sleep_using_event(self._stopping),
        )
        try:
            return retrying(ask)
        except RetryError as gave_up:
            error = gave_up.last_attempt.exception()
            raise TeacherAwayError(
                f"the teacher was away for longer than teacher_wait_seconds, {self._wait_seconds:g} s: {error}"
            ) from error

    def _before_sleep(self, state: RetryCallState) -> None:
        if self._stopping.is_set():
            raise Interrupted
        _log.warning(
            "waiting_for_teacher",
            attempt=state.attempt_number,
            waited_seconds=round(state.seconds_since_start or 0.0, 1),
            next_attempt_in_seconds=round(state.upcoming_sleep, 1),
            gives_up_after_seconds=self._wait_seconds,
            reason=str(_error_of(state)),
            request_id=getattr(_error_of(state), "request_id", ""),
        )


def _may_come_back(error: BaseException) -> bool:
    if isinstance(error, OverloadedError):
        return math.isfinite(error.retry_after_seconds)
    return isinstance(error, AWAY)


def _wait_seconds(state: RetryCallState) -> float:
    error = _error_of(state)
    pushback = error.retry_after_seconds if isinstance(error, OverloadedError) else 0.0
    return pushback + _backoff(state)


def _error_of(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()
