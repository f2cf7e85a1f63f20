"""One front as the engine has it: its process, the link to it, the memory shared with it, and its last words.

It never outlives the engine: it ends when its socket does, and the kernel sees to one that has hung. For one event
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Self

import structlog

from stillhouse.errors import ConfigurationError
from teacher_service.admission import Admission
from teacher_service.fronts.arena import Arena
from teacher_service.fronts.engine_side import EngineSide, Served
from teacher_service.fronts.frames import Frame, FrameError, Kind
from teacher_service.fronts.link import Link
from teacher_service.request_reading import RequestReader
from teacher_service.settings import NOT_FLAGS, TeacherSettings

# A front that takes nothing of what is sent to it for so long has hung.
_STALL_SECONDS = 30.0
# A process that has hung up is about to end.
_END_SECONDS = 5.0

logger = structlog.get_logger(__name__)


class FrontProcess:
    """A front that has been started."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, link: Link, arena: Arena) -> None:
        self.number = number
        self._process = process
        self._link = link
        self._arena = arena
        self._scrapes: dict[int, asyncio.Future[bytes]] = {}
        self._scrape_numbers = count(1)
        self.listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it listens; fails with why it never will."""
        self.is_open = asyncio.Event()
        """Set when, after `ready`, it accepts requests, or it has gone."""
        self.empty = asyncio.Event()
        """Set when, after `drain`, nothing is in flight there, or it has gone."""
        self.started_at = time.monotonic()
        self.has_spoken = False
        """Set by whatever it says; whoever watches unsets it."""

    @classmethod
    async def start(cls, number: int, settings: TeacherSettings, redis_url: str | None, port: int) -> Self:
        """Start one, and tell it what it is to be.

        Raises:
            ConfigurationError: this system has no memory to share, or starts no process.
        """
        ours, theirs = socket.socketpair()
        arena = None
        try:
            arena = Arena()
            argv = [sys.executable, "-m", "teacher_service.fronts", str(theirs.fileno()), str(arena.descriptor)]
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), arena.descriptor),
                # Ctrl-C reaches it only through the engine.
                start_new_session=True,
            )
        except (OSError, AttributeError) as error:
            ours.close()
            if arena is not None:
                arena.close()
            raise ConfigurationError(f"front_processes: a front does not start here: {error}") from error
        finally:
            theirs.close()
        front = cls(number, process, await Link.over(ours, stall_seconds=_STALL_SECONDS), arena)
        about = {"front": number, "settings": _told(settings), "redis_url": redis_url, "port": port}
        front._link.tell(Kind.START, about=about)
        return front

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def run(self, served: Callable[[], Served], admission: Admission, reader: RequestReader) -> int:
        """Serve it until it has gone, and take everything back; return its exit status."""
        side = EngineSide(self._link, self._arena, served, admission, reader, self._hear)
        try:
            await side.run()
        except FrameError:
            logger.exception("front_not_understood", front=self.number)
        finally:
            self._link.close()
            status = await self._end()
            self._arena.close()
            self.empty.set()
            self.is_open.set()
            if not self.listening.done():
                self.listening.set_exception(ConfigurationError(f"front {self.number} ended with status {status}"))
            self.listening.exception()  # seen: nobody may be waiting
            for waiting in self._scrapes.values():
                waiting.cancel()
        return status

    def ready(self, description: bytes) -> None:
        """Let it open for requests, given the teacher's description."""
        self._link.tell(Kind.READY, body=description)

    def tell(self, kind: Kind) -> None:
        """Tell it where the service stands."""
        self._link.tell(kind)

    async def scrape(self) -> bytes:
        """Return what it has counted by now."""
        number = next(self._scrape_numbers)
        waiting = self._scrapes[number] = asyncio.get_running_loop().create_future()
        try:
            self._link.tell(Kind.SCRAPE, number)
            told: bytes = await waiting
        finally:
            del self._scrapes[number]
        return told

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _end(self) -> int:
        try:
            async with asyncio.timeout(_END_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            self.kill()
            return await self._process.wait()
        except asyncio.CancelledError:
            self.kill()
            raise

    def _hear(self, frame: Frame) -> None:
        self.has_spoken = True
        match frame.kind:
            case Kind.LISTENING:
                if not self.listening.done():
                    self.listening.set_result(None)
            case Kind.FAILED:
                if not self.listening.done():
                    self.listening.set_exception(ConfigurationError(str(frame.about.get("message"))))
            case Kind.SAMPLES:
                waiting = self._scrapes.get(frame.call)
                if waiting is not None and not waiting.done():
                    waiting.set_result(bytes(frame.body))
            case Kind.OPEN:
                self.is_open.set()
            case Kind.EMPTY:
                self.empty.set()
            case _:
                raise FrameError(f"a front says no {frame.kind.name}")


def _told(settings: TeacherSettings) -> dict[str, Any]:
    """Return the settings, secrets in plain text: they go through a socket that nobody else has."""
    values = settings.model_dump(mode="json")
    for name in NOT_FLAGS:
        secret = getattr(settings, name)
        values[name] = None if secret is None else secret.get_secret_value()
    return values
