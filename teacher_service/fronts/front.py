"""One front process: a gRPC door, whose answers come out of the cache or from the engine.

It does what it is told over its socket, and ends with it. Signals are the engine's to take: those that reach a whole
service at once must not end a front before what is in flight has been answered.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Coroutine
from functools import partial
from typing import Any

import structlog

from stillhouse.errors import ConfigurationError
from stillhouse.logs import configure_logging
from stillhouse.messages import description_from_proto
from stillhouse.processes import die_with_parent
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.tracing import configure_tracing
from teacher_service import event_loop
from teacher_service.addresses import address_of
from teacher_service.admission import Admission
from teacher_service.auth import Access
from teacher_service.cache import AnswerCache
from teacher_service.freed_memory import keep_freed_memory
from teacher_service.fronts.arena import ArenaView
from teacher_service.fronts.engine import Engine
from teacher_service.fronts.frames import Frame, FrameError, Kind
from teacher_service.fronts.front_teacher import FrontTeacher
from teacher_service.fronts.link import Link
from teacher_service.fronts.samples import tell_samples
from teacher_service.garbage import look_for_garbage_seldom
from teacher_service.grpc_door import GrpcDoor
from teacher_service.life import Life
from teacher_service.metrics import Metrics
from teacher_service.recall import Recall
from teacher_service.request_notes import RequestNotes
from teacher_service.settings import TeacherSettings
from teacher_service.tls import Tls
from teacher_service.token_sources import tokens_of
from teacher_service.token_watch import watch_tokens

# How long what has been decided already (statuses, last bytes) may take to leave.
_LAST_WORDS_SECONDS = 2.0

_ORPHANED = 3
"""The exit status of a front whose engine has gone."""

logger = structlog.get_logger(__name__)


def run(connection: int, memory: int) -> None:
    """Be a front, told what to do over an open socket, until it is told to go or the engine has gone."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # Beside the end of the socket: a front that hangs would not see that.
    die_with_parent(signal.SIGKILL)
    keep_freed_memory()
    look_for_garbage_seldom()
    event_loop.run(_serve(socket.socket(fileno=connection), ArenaView(memory)))


async def _serve(connection: socket.socket, memory: ArenaView) -> None:
    link = await Link.over(connection)
    start = await link.receive()
    if start is None or start.kind is not Kind.START:
        return
    settings = TeacherSettings(**start.about["settings"])
    configure_logging(
        settings.log_level, settings.log_format, stacks=settings.log_level == "debug", front=start.about["front"]
    )
    try:
        end_tracing = configure_tracing("stillhouse-teacher")
        front = Front(settings, start.about["redis_url"], link, memory)
        await front.open(start.about["port"])
    except ConfigurationError as error:
        link.tell(Kind.FAILED, about={"message": str(error)})
        return
    link.tell(Kind.LISTENING)
    is_told_to_go = await front.obey()
    end_tracing()
    if not is_told_to_go:
        logger.warning("engine_has_gone")
        os._exit(_ORPHANED)


class Front:
    """The parts of one front; for one event loop."""

    def __init__(self, settings: TeacherSettings, redis_url: str | None, link: Link, memory: ArenaView) -> None:
        """Read tokens and certificates; nothing listens yet.

        Raises:
            ConfigurationError: one of them cannot be used.
        """
        self._settings = settings
        self._link = link
        self._metrics = Metrics()
        self._life = Life[FrontTeacher](self._metrics)
        self._access = Access(tokens_of(settings))
        self._admission = Admission(
            self._access,
            self._metrics,
            max_requests_per_token=settings.max_requests_per_token,
            max_seconds=settings.max_call_seconds,
        )
        self._tls = None if settings.tls_certificate is None else Tls(settings, self._metrics)
        self._notes = RequestNotes(settings.log_requests_over_seconds)
        self._door = GrpcDoor(self._life, self._metrics, self._admission, self._notes, settings)
        self._engine = Engine(link, memory, max_answer_bytes=settings.max_answer_bytes)
        self._cache = None if redis_url is None else _open_cache(redis_url, settings, self._metrics)
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, port: int) -> None:
        """Listen, and answer health checks.

        Raises:
            ConfigurationError: gRPC cannot listen there.
        """
        credentials = None if self._tls is None else self._tls.grpc_credentials()
        await self._door.open(address_of(self._settings.host, port), credentials)
        if self._settings.tokens_file is not None:
            self._begin(watch_tokens(partial(tokens_of, self._settings), self._access, self._metrics))
        if self._tls is not None:
            self._begin(self._tls.watch())

    async def obey(self) -> bool:
        """Do what the engine says until it says to go, which is true, or has gone."""
        try:
            while (frame := await self._link.receive()) is not None:
                if frame.kind is Kind.CLOSE:
                    await self._close()
                    return True
                await self._take(frame)
        except FrameError:
            logger.exception("engine_not_understood")
        except ConnectionError:
            pass  # it has gone while it was being told something
        self._engine.end()
        return False

    async def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.READY:
                await self._ready(bytes(frame.body))
            case Kind.DRAIN:
                self._life.drain()
                self._admission.drain()
                await self._door.set_serving(serving=False)
                self._begin(self._tell_when_empty())
            case Kind.END:
                self._admission.end()
            case Kind.SCRAPE:
                told = tell_samples(self._metrics, self._notes.slowest())
                await self._link.send(Kind.SAMPLES, frame.call, body=told)
            case _:
                self._engine.hear(frame)

    async def _ready(self, message: bytes) -> None:
        description = description_from_proto(pb.GetTeacherResponse.FromString(message))
        recall = None if self._cache is None else Recall(self._cache, self._metrics)
        if self._cache is not None:
            await self._cache.ping()
        teacher = FrontTeacher(description, self._engine, recall, self._metrics, self._settings)
        if self._life.phase == "loading":
            self._life.begin(teacher, self._engine)
            await self._door.set_serving(serving=True)
        self._link.tell(Kind.OPEN)

    async def _tell_when_empty(self) -> None:
        if await self._admission.wait_until_empty(self._settings.max_call_seconds):
            self._link.tell(Kind.EMPTY)

    async def _close(self) -> None:
        self._life.drain()
        self._admission.drain()
        await self._door.close(_LAST_WORDS_SECONDS)
        if self._cache is not None:
            await self._cache.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._link.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(work))


def _open_cache(redis_url: str, settings: TeacherSettings, metrics: Metrics) -> AnswerCache:
    # It only looks up: who computes what is settled by the engine, and so it needs no leases.
    return AnswerCache(
        redis_url,
        metrics,
        timeout_seconds=settings.cache_wait_seconds,
        max_value_bytes=settings.cache_max_value_bytes,
        ttl_seconds=settings.cache_ttl_seconds,
    )
