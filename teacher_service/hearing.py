"""Who asks about health is heard: a few at a time, each for a bounded time, and nobody is kept out by who is silent.

Health checks need no token, so that gRPC would take messages from anybody. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from stillhouse.errors import TeacherTimeoutError
from teacher_service.metrics import Metrics

HEALTH_MESSAGE_BYTES = 4096
"""The most that a question about health has; where nothing else is answered, gRPC itself sees to it."""

# Where it does not, it takes any message up to the largest of all, from callers without a token too: who finds so many
# under way at once waits a moment, as honest ones are read within milliseconds, and then the oldest is given up.
_MAX_UNREAD_QUESTIONS = 4
_QUESTION_SECONDS = 10.0
_TURN_SECONDS = 0.1


class Hearing:
    """The questions that are being read; for one event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._shed = metrics.shed
        self._unread: list[asyncio.Timeout] = []
        self._places = asyncio.Semaphore(_MAX_UNREAD_QUESTIONS)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[int]:
        """Bound the reading of a question, whose most bytes it gives: those who take long make room for those who come.

        Raises:
            TeacherTimeoutError: the question did not come in time.
        """
        try:
            async with asyncio.timeout(_QUESTION_SECONDS) as bound:
                await self._wait_for_a_place()
                try:
                    self._unread.append(bound)
                    yield HEALTH_MESSAGE_BYTES
                finally:
                    self._places.release()
                    with suppress(ValueError):
                        self._unread.remove(bound)
        except TimeoutError as error:
            if not bound.expired():
                raise
            self._shed.labels("not_heard").inc()
            raise TeacherTimeoutError("the question did not come in time; a health check has a few bytes") from error

    async def _wait_for_a_place(self) -> None:
        """Take a place; every turn that brings none frees one, until the bound around it."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TURN_SECONDS):
                    await self._places.acquire()
                    return
            if self._unread:
                self._unread.pop(0).reschedule(asyncio.get_running_loop().time())
