"""Who may come in, how many of one caller at once, and for how long: asked by both doors before anything else.

A place is held from a request's arrival until its answer has left, so that what waits, computes or is still being sent
is in flight, for a caller's limit and for an orderly end alike. How much the service takes on from all callers together
is `capacity`'s matter. Knows nothing of gRPC, HTTP or how answers are made. For one event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from stillhouse.errors import OverloadedError, TeacherTimeoutError, TeacherUnavailableError
from teacher_service.auth import Access, Caller
from teacher_service.metrics import Metrics

# A caller over its limit waits for its own requests, of whose length nothing is known here.
_RETRY_AFTER_SECONDS = 0.25

_DRAINING = "the teacher is draining; ask another, or this one once it is back"
_ENDED = "the teacher was stopped before it could answer; ask another, or this one once it is back"


class Place:
    """One request in flight."""

    def __init__(self, admission: Admission, caller: Caller) -> None:
        self.caller = caller
        self._admission = admission
        self._is_held = True

    def leave(self) -> None:
        """Give the place back; once, however often called."""
        if self._is_held:
            self._is_held = False
            self._admission.forget(self.caller)


class Admission:
    """The limit on each caller's requests in flight, and the count of all that an orderly end waits for."""

    def __init__(
        self,
        access: Access,
        metrics: Metrics,
        *,
        max_requests_per_token: int,
        max_seconds: float,
        shows_callers: bool = True,
    ) -> None:
        """Let nobody in yet. `shows_callers` is off where others, who let the same requests in, show them."""
        self.access = access
        self._metrics = metrics
        # As many as there are tokens.
        self._shown_of = cache(metrics.caller_requests.labels) if shows_callers else None
        self._max_requests_per_token = max_requests_per_token
        self._max_seconds = max_seconds
        self._in_flight: Counter[str] = Counter()
        self._bounds: set[asyncio.Timeout] = set()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._is_draining = self._is_ended = False

    def enter(self, authorization: str | None) -> Place:
        """Take a place for whoever sent this header; it must be left again.

        Raises:
            UnauthenticatedError, PermissionDeniedError: as `Access.check`, for the scope `teacher`.
            TeacherUnavailableError: the service drains.
            OverloadedError: too many of this caller are in flight.
        """
        return self.enter_as(self.access.check(authorization, "teacher"))

    def enter_as(self, caller: Caller) -> Place:
        """Take a place for a caller who has been recognised.

        Raises:
            TeacherUnavailableError, OverloadedError: as `enter`.
        """
        if self._is_draining:
            raise TeacherUnavailableError(_DRAINING)
        if not self.access.is_open and self._in_flight[caller.name] >= self._max_requests_per_token:
            self._metrics.shed.labels("token").inc()
            raise OverloadedError(
                f"{caller.name} has {self._max_requests_per_token} requests in flight, the most of one token; "
                "come again when one has ended",
                _RETRY_AFTER_SECONDS,
            )
        self._in_flight[caller.name] += 1
        self._nobody.clear()
        if self._shown_of is not None:
            self._shown_of(caller.name).inc()
        return Place(self, caller)

    @asynccontextmanager
    async def admit(self, caller: Caller) -> AsyncIterator[Caller]:
        """Hold a place, within the time that any request has, for as long as the block runs.

        Raises:
            TeacherError: as `enter_as` and `bounded`.
        """
        place = self.enter_as(caller)
        try:
            async with self.bounded():
                yield place.caller
        finally:
            place.leave()

    @asynccontextmanager
    async def bounded(self) -> AsyncIterator[None]:
        """Run a block within the time that any request has, and no longer than the service lives.

        Raises:
            TeacherTimeoutError: it took longer.
            TeacherUnavailableError: the grace of the service's end is over.
        """
        try:
            async with asyncio.timeout(0 if self._is_ended else self._max_seconds) as bound:
                self._bounds.add(bound)
                try:
                    yield
                finally:
                    self._bounds.discard(bound)
        except TimeoutError as error:
            if not bound.expired():
                raise
            if self._is_ended:
                raise TeacherUnavailableError(_ENDED) from error
            raise TeacherTimeoutError(f"the answer took longer than {self._max_seconds:g} s, the most here") from error

    def drain(self) -> None:
        """Refuse whoever comes from now on; those in flight go on."""
        self._is_draining = True

    def end(self) -> None:
        """Give up those that are still in flight: each is answered that the teacher is gone."""
        self._is_draining = self._is_ended = True
        now = asyncio.get_running_loop().time()
        for bound in tuple(self._bounds):
            bound.reschedule(now)

    async def wait_until_empty(self, seconds: float) -> bool:
        """Wait until nobody is in flight, for at most so long; return whether that came."""
        try:
            async with asyncio.timeout(seconds):
                await self._nobody.wait()
        except TimeoutError:
            return False
        return True

    @property
    def num_in_flight(self) -> int:
        """Requests of all callers that hold a place."""
        return self._in_flight.total()

    def forget(self, caller: Caller) -> None:
        """Count one less of this caller; `Place.leave` calls it."""
        self._in_flight[caller.name] -= 1
        if not self._in_flight[caller.name]:
            del self._in_flight[caller.name]
        if not self._in_flight:
            self._nobody.set()
        if self._shown_of is not None:
            self._shown_of(caller.name).dec()
