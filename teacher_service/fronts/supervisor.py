"""The front processes of a service: started before anything loads, kept, told where the service stands, and ended.

The engine holds the port for as long as it lives, so that fronts can come and go on it. One that dies is started again;
where they keep dying, the service ends. For one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any

import structlog

from stillhouse.errors import StillhouseError, TeacherUnavailableError
from stillhouse.messages import description_to_proto
from teacher_service.addresses import hold_shared
from teacher_service.admission import Admission
from teacher_service.answering import HeadGiving
from teacher_service.auth import Access
from teacher_service.fronts.engine_side import Served
from teacher_service.fronts.frames import FrameError, Kind
from teacher_service.fronts.front_process import FrontProcess
from teacher_service.fronts.samples import Figures
from teacher_service.metrics import Metrics
from teacher_service.request_notes import RequestNotes
from teacher_service.request_reading import RequestReader
from teacher_service.settings import TeacherSettings
from teacher_service.teacher import Teacher

# Importing takes a second or two, on a busy machine several times as long.
_START_SECONDS = 60.0
# To read a description, and to ask Redis once.
_OPEN_SECONDS = 10.0
# Deaths beyond this many in this time are no accidents.
_MOST_DEATHS = 5
_DEATHS_WITHIN_SECONDS = 60.0
_RESTART_PAUSE_SECONDS = 0.1

# Between two looks at what each has counted; that also tells that it lives.
_BEAT_SECONDS = 2.0
_MOST_SILENT_BEATS = 15
# Whoever shows figures waits no longer for them than this.
_SCRAPE_SECONDS = 1.0

logger = structlog.get_logger(__name__)


class Fronts:
    """The fronts of one service."""

    def __init__(
        self, settings: TeacherSettings, redis_url: str | None, access: Access, metrics: Metrics, notes: RequestNotes
    ) -> None:
        self._settings = settings
        self._redis_url = redis_url
        # What comes from all fronts together is held to the same bounds once more.
        self._admission = Admission(
            access,
            metrics,
            max_requests_per_token=settings.max_requests_per_token,
            max_seconds=settings.max_call_seconds,
            shows_callers=False,
        )
        self._reader = RequestReader()
        self._figures = Figures()
        metrics.registry.adding = self._figures.added_to
        metrics.refresh = self.refresh
        notes.elsewhere = self._figures.slowest
        self._held: tuple[socket.socket, ...] = ()
        self._living: dict[int, FrontProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._first: dict[int, asyncio.Future[None]] = {}
        self._served: Served | None = None
        self._description = b""
        self._is_draining = False
        self._closing = asyncio.Event()

    @property
    def pids(self) -> dict[int, int]:
        """The process ids of those that live, by their numbers."""
        return {number: front.pid for number, front in self._living.items()}

    async def open(self, host: str, port: int) -> int:
        """Take the port, start all fronts and wait until each listens; return the port.

        Raises:
            ConfigurationError: the port is taken, or a front cannot run.
        """
        self._held = hold_shared(host, port, "grpc_port")
        number: int = self._held[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        self._first = {front: loop.create_future() for front in range(1, self._settings.front_processes + 1)}
        for front in self._first:
            self._begin(self._keep(front, number), f"front {front}")
        self._begin(self._beat(), "beat of the fronts")
        try:
            async with asyncio.timeout(_START_SECONDS):
                await asyncio.gather(*self._first.values())
        except TimeoutError:
            raise StillhouseError(f"the fronts did not listen within {_START_SECONDS:.0f} s; see the log") from None
        return number

    async def begin(self, teacher: Teacher, heads: HeadGiving) -> None:
        """Let all open for requests, and wait until they have; one that takes long opens by itself later."""
        self._served = Served(teacher, heads)
        self._description = description_to_proto(teacher.description, include_tokens=True).SerializeToString()
        for front in self._living.values():
            front.ready(self._description)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_OPEN_SECONDS):
                for front in tuple(self._living.values()):
                    await front.is_open.wait()

    def drain(self) -> None:
        """Let all refuse what is new; what is in flight goes on."""
        self._is_draining = True
        self._tell(Kind.DRAIN)

    async def wait_until_empty(self, seconds: float) -> bool:
        """After `drain`, wait until nothing is in flight anywhere, for at most so long; return whether that came."""
        try:
            async with asyncio.timeout(seconds):
                for front in tuple(self._living.values()):
                    await front.empty.wait()
        except TimeoutError:
            return False
        return True

    def end(self) -> None:
        """Give up what is in flight."""
        self._tell(Kind.END)

    async def failed(self) -> None:
        """Wait until the fronts cannot go on.

        Raises:
            StillhouseError: they cannot.
        """
        await asyncio.shield(self._failed)

    async def refresh(self) -> None:
        """Ask each front what it has counted by now, for a bounded time."""
        asking = [asyncio.create_task(self._scrape(front)) for front in self._living.values()]
        if asking:
            _, late = await asyncio.wait(asking, timeout=_SCRAPE_SECONDS)
            for task in late:
                task.cancel()

    async def close(self, seconds: float) -> None:
        """End all: each closes what it has open within so many seconds, or is ended by force."""
        self._is_draining = True
        self._closing.set()
        self._tell(Kind.CLOSE)
        if self._tasks:
            keepers = {task for task in self._tasks if not task.get_name().startswith("beat")}
            if keepers:
                await asyncio.wait(keepers, timeout=seconds)
            for front in self._living.values():
                front.kill()
            for task in self._tasks - keepers:
                task.cancel()
            await asyncio.wait(self._tasks)
        for held in self._held:
            held.close()
        self._failed.cancel()

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.add(asyncio.create_task(work, name=name))

    def _tell(self, kind: Kind) -> None:
        for front in self._living.values():
            front.tell(kind)

    async def _keep(self, number: int, port: int) -> None:
        """Keep one front alive until the service closes."""
        first = self._first[number]
        try:
            while not self._closing.is_set():
                front = await FrontProcess.start(number, self._settings, self._redis_url, port)
                self._living[number] = front
                front.listening.add_done_callback(lambda done: _pass_on(done, first))
                if self._served is not None:
                    front.ready(self._description)
                if self._is_draining:
                    front.tell(Kind.DRAIN)
                if self._closing.is_set():
                    front.tell(Kind.CLOSE)
                status = await front.run(self._serve, self._admission, self._reader)
                del self._living[number]
                self._figures.bury(number)
                if self._is_draining or not first.done() or first.exception() is not None:
                    return
                self._note_death(number, status)
                await asyncio.sleep(_RESTART_PAUSE_SECONDS)
        except StillhouseError as error:
            self._fail(error)
        except Exception:  # whatever it is, the service must not go on without this front
            logger.exception("front_not_kept", front=number)
            self._fail(StillhouseError(f"front {number} cannot be kept; see the log"))

    def _note_death(self, number: int, status: int) -> None:
        logger.warning("front_ended", front=number, status=status)
        now = time.monotonic()
        if len(self._deaths) == _MOST_DEATHS and now - self._deaths[0] < _DEATHS_WITHIN_SECONDS:
            raise StillhouseError(
                f"front processes keep ending: {_MOST_DEATHS + 1} times within {_DEATHS_WITHIN_SECONDS:.0f} s, the "
                f"last with status {status}; see the log, or set front_processes to 0"
            )
        self._deaths.append(now)

    def _fail(self, error: StillhouseError) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # seen: the service may be ending already
        for first in self._first.values():
            if not first.done():
                first.set_exception(error)
                first.exception()

    def _serve(self) -> Served:
        if self._served is None:
            raise TeacherUnavailableError("the teacher is loading its weights; come again shortly")
        return self._served

    async def _beat(self) -> None:
        """Look at what each has counted, and end one that says nothing any more; until cancelled."""
        silent: dict[int, int] = {}
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            for front in tuple(self._living.values()):
                is_starting = not front.listening.done() and time.monotonic() < front.started_at + _START_SECONDS
                was_heard, front.has_spoken = front.has_spoken or is_starting, False
                silent[front.pid] = 0 if was_heard else silent.get(front.pid, 0) + 1
                if silent[front.pid] > _MOST_SILENT_BEATS:
                    logger.warning("front_hangs", front=front.number)
                    front.kill()
            silent = {front.pid: silent.get(front.pid, 0) for front in self._living.values()}
            await self.refresh()

    async def _scrape(self, front: FrontProcess) -> None:
        told = await front.scrape()
        try:
            if self._living.get(front.number) is front:
                self._figures.take(front.number, told)
        except FrameError:
            logger.exception("samples_not_understood", front=front.number)


def _pass_on(done: asyncio.Future[None], first: asyncio.Future[None]) -> None:
    if first.done() or done.cancelled():
        return
    error = done.exception()
    if error is None:
        first.set_result(None)
    else:
        first.set_exception(error)
        first.exception()  # seen: who opens the service may have left on another's
