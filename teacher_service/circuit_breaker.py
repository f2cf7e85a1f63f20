"""Leaves a failing dependency alone for a while, so that not every request waits for it to fail again.

Knows nothing of what fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES_TO_OPEN = 3
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


class CircuitBreaker:
    """Closed: calls pass. After three failures in a row: open for a pause. Then one call tries; the others wait.

    Each failed try doubles the pause, from half a second to half a minute; a success closes the breaker.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._is_open = False
        self._is_trying = False
        self._retry_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the dependency counts as failed."""
        return self._is_open

    def allows_call(self) -> bool:
        """Return whether to call now. While open, only the first to ask after a pause may, and a new pause begins."""
        if not self._is_open:
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        self._retry_at = now + self._pause_seconds
        self._is_trying = True
        return True

    def succeeded(self) -> None:
        """Report a call that worked."""
        self._failures = 0
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._is_open = self._is_trying = False

    def failed(self) -> None:
        """Report a call that did not. Of those that began before it opened, none lengthens the pause."""
        self._failures += 1
        if self._is_open:
            if not self._is_trying:
                return
            self._is_trying = False
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        elif self._failures < FAILURES_TO_OPEN:
            return
        self._is_open = True
        self._retry_at = self._clock() + self._pause_seconds
