"""The engine's side of one front: answers what it asks, with the one teacher, and takes everything back at its end.

A front that leaves, in order or not, takes its calls out of the queue and gives its shared memory back. Knows nothing
of processes. For one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from stillhouse.chunks import split, split_views
from stillhouse.encodings import ValueType
from stillhouse.errors import TeacherError
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.tracing import span
from teacher_service.admission import Admission
from teacher_service.answering import EncodedAnswer, HeadGiving
from teacher_service.auth import Caller
from teacher_service.fronts.arena import Arena
from teacher_service.fronts.faults import tell_error
from teacher_service.fronts.frames import Frame, Kind
from teacher_service.fronts.link import Link, StalledError
from teacher_service.request_reading import RequestReader
from teacher_service.teacher import Teacher

# Up to here an answer goes through the socket: smaller than this, sharing memory gains nothing.
_INLINE_BYTES = 64 * 1024
# About a millisecond: so long the event loop waits for it.
_LAID_AT_ONCE_BYTES = 4 * 2**20

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """Who answers for fronts, once the model is there."""

    teacher: Teacher
    heads: HeadGiving


class EngineSide:
    """Serves one front, until it has gone."""

    def __init__(
        self,
        link: Link,
        arena: Arena,
        served: Callable[[], Served],
        admission: Admission,
        reader: RequestReader,
        hear: Callable[[Frame], None],
    ) -> None:
        """Serve over `link`; what is no call is handed to `hear`.

        `served` raises TeacherUnavailableError while there is nobody.
        """
        self._link = link
        self._arena = arena
        self._served = served
        self._admission = admission
        self._reader = reader
        self._hear = hear
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._taken: dict[int, int] = {}
        self._wanted: dict[int, asyncio.Semaphore] = {}

    async def run(self) -> None:
        """Serve until the front hangs up.

        Raises:
            FrameError: what it says is no frame.
        """
        try:
            while (frame := await self._link.receive()) is not None:
                self._take(frame)
        finally:
            await self._give_up_all()

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.ASK:
                self._start(frame.call, partial(self._answer, frame))
            case Kind.HEAD:
                self._start(frame.call, partial(self._send_head, frame))
            case Kind.NEXT:
                if frame.call in self._wanted:
                    self._wanted[frame.call].release()
            case Kind.LEAVE:
                self._leave(frame.call)
            case _:
                self._hear(frame)

    def _start(self, call: int, work: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.create_task(self._safely(call, work))
        self._tasks[call] = task

        def forget(_: asyncio.Task[None]) -> None:
            if self._tasks.get(call) is task:
                del self._tasks[call]

        task.add_done_callback(forget)

    async def _safely(self, call: int, work: Callable[[], Awaitable[None]]) -> None:
        """Tell the front what an error was: it tells its caller."""
        try:
            await work()
        except ConnectionError:
            pass  # it has gone, which its link says too
        except StalledError:
            # No good to anybody: without its link it ends, and is started again.
            logger.warning("front_takes_nothing")
            self._link.close()
        except Exception as error:  # whatever it is, its caller must hear of it
            if not isinstance(error, TeacherError):
                logger.exception("call_failed", method="of a front")
            self._link.tell(Kind.ERROR, call, tell_error(error))

    async def _answer(self, frame: Frame) -> None:
        about = frame.about
        name, trace = str(about.get("caller", "")), dict(about.get("trace") or {})
        structlog.contextvars.bind_contextvars(caller=name, request_id=str(about.get("request_id", "")))
        with span("answer for a front", trace, request_id=str(about.get("request_id", ""))):
            async with self._admission.admit(Caller(name)):
                teacher = self._served().teacher
                message = pb.LogitsRequest.FromString(bytes(frame.body))
                request = await self._reader.read(message, teacher.description.limits)
                async with teacher.answering(teacher.check(request), is_looked_up=True) as answer:
                    await self._send_answer(frame.call, answer)

    async def _send_answer(self, call: int, answer: EncodedAnswer) -> None:
        about: dict[str, Any] = {
            "sizes": [len(payload) for payload in answer.payloads],
            "fingerprint": answer.fingerprint,
            "cache_hits": answer.cache_hits,
            "queue_seconds": answer.queue_seconds,
            "compute_seconds": answer.compute_seconds,
            "encode_seconds": answer.encode_seconds,
        }
        start = self._arena.take(answer.num_bytes) if answer.num_bytes > _INLINE_BYTES else None
        if start is not None:
            self._taken[call] = start
            for offset, parts in split_views(answer.payloads, _LAID_AT_ONCE_BYTES):
                self._arena.lay(start + offset, parts)
                # Whoever has left meanwhile ends this here, before their part is another's.
                await asyncio.sleep(0)
            await self._link.send(Kind.ANSWER, call, about | {"at": start})
            return
        pieces = split(answer.payloads)
        _, first = next(pieces, (0, b""))
        await self._link.send(Kind.ANSWER, call, about | {"offset": 0}, first)
        for offset, piece in pieces:
            await self._link.send(Kind.PIECE, call, {"offset": offset}, piece)

    async def _send_head(self, frame: Frame) -> None:
        """Send the head piece by piece, each when it is asked for: the front holds no more than its caller takes."""
        value_type: ValueType | None = frame.about.get("value_type")
        wanted = self._wanted[frame.call] = asyncio.Semaphore(0)
        try:
            async with self._served().heads.sending(value_type) as head:
                await self._link.send(Kind.ANSWER, frame.call, {"num_bytes": head.num_bytes})
                async for offset, data in head.chunks():
                    await wanted.acquire()
                    await self._link.send(Kind.PIECE, frame.call, {"offset": offset}, data)
        finally:
            del self._wanted[frame.call]

    def _leave(self, call: int) -> None:
        """Take a call out of the queue, and take its memory back, whichever of these it still has."""
        task = self._tasks.get(call)
        if task is not None:
            task.cancel()
        start = self._taken.pop(call, None)
        if start is not None:
            self._arena.give_back(start)

    async def _give_up_all(self) -> None:
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._taken.clear()
