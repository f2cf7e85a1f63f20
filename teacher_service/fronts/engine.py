"""A front's way to the engine: asks, waits, hands answers out, and gives everything back. For one event loop.

Knows nothing of caches, nor of how an answer is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

import structlog

from stillhouse.chunks import Joiner
from stillhouse.encodings import ValueType
from stillhouse.errors import StreamError, TeacherError, TeacherInternalError, TeacherUnavailableError
from stillhouse.messages import request_to_proto
from stillhouse.request import LogitsRequest
from stillhouse.tracing import trace_headers
from teacher_service.answering import EncodedAnswer
from teacher_service.fronts.arena import ArenaView
from teacher_service.fronts.faults import read_error
from teacher_service.fronts.frames import Frame, FrameError, Kind
from teacher_service.fronts.link import Link

logger = structlog.get_logger(__name__)

_GONE = "the teacher was stopped before it could answer"


class _Call:
    """One question under way: what is said to it comes one by one, each waited for before the next is asked for."""

    def __init__(self, number: int, take: Callable[[_Call, Frame], Any]) -> None:
        self.number = number
        self._take = take
        self.joiner: Joiner | None = None
        self.about: dict[str, Any] = {}
        self.is_over = True
        """Whether the engine has nothing of it: not yet, or not any more."""
        self.expect()

    def expect(self) -> None:
        """Wait for the next thing that is said."""
        self.said: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def hear(self, frame: Frame) -> None:
        """Take what is said."""
        if self.said.done():
            return
        if frame.kind is Kind.ERROR:
            self.is_over = True
            self.said.set_exception(read_error(frame.about))
            return
        try:
            found = self._take(self, frame)
        except (StreamError, ValueError, TypeError, KeyError):
            logger.exception("answer_not_understood")
            self.said.set_exception(TeacherInternalError("an internal fault of the teacher service; its log says more"))
            return
        if found is not None:
            self.said.set_result(found)

    def fail(self, error: TeacherError) -> None:
        """End the wait."""
        if not self.said.done():
            self.said.set_exception(error)


class Engine:
    """The engine, as a front sees it."""

    def __init__(self, link: Link, arena: ArenaView, *, max_answer_bytes: int) -> None:
        self._link = link
        self._arena = arena
        self._max_answer_bytes = max_answer_bytes
        self._numbers = count(1)
        self._calls: dict[int, _Call] = {}

    @asynccontextmanager
    async def asking(self, request: LogitsRequest, *, caller: str, request_id: str) -> AsyncIterator[EncodedAnswer]:
        """Have the engine answer a request. Payloads may lie in shared memory: nobody looks at them after the context.

        Raises:
            TeacherError: what the engine's teacher raises.
        """
        about = {"caller": caller, "request_id": request_id, "trace": dict(trace_headers())}
        with self._calling(self._take_answer) as call:
            await self._say(Kind.ASK, call, about, request_to_proto(request).SerializeToString())
            yield await call.said

    @asynccontextmanager
    async def sending(self, value_type: ValueType | None) -> AsyncIterator[_Head]:
        """Give the output head for as long as it is being sent, as `HeadGiving` does."""
        with self._calling(_take_head) as call:
            await self._say(Kind.HEAD, call, {"value_type": value_type})
            yield _Head(await call.said, call, partial(self._say, Kind.NEXT, call, {}))

    def hear(self, frame: Frame) -> None:
        """Take what the engine says to a question; that to one of which nobody wants to hear any more is dropped."""
        call = self._calls.get(frame.call)
        if call is not None:
            call.hear(frame)

    def end(self) -> None:
        """The engine has gone."""
        for call in self._calls.values():
            call.fail(TeacherUnavailableError(_GONE))

    async def _say(self, kind: Kind, call: _Call, about: dict[str, Any], body: bytes = b"") -> None:
        try:
            await self._link.send(kind, call.number, about, body)
        except ConnectionError as error:
            raise TeacherUnavailableError(_GONE) from error
        call.is_over = False

    def _calling(self, take: Callable[[_Call, Frame], Any]) -> _Calling:
        return _Calling(self._calls, self._link, _Call(next(self._numbers), take))

    def _take_answer(self, call: _Call, frame: Frame) -> EncodedAnswer | None:
        if frame.kind is Kind.ANSWER:
            call.about = dict(frame.about)
            sizes, start = call.about["sizes"], call.about.get("at")
            if start is not None:
                return _answer(call.about, self._arena.views(start, sizes))
            call.joiner = Joiner(sizes, max_bytes=self._max_answer_bytes)
        if call.joiner is None:
            raise FrameError(f"a {frame.kind.name} frame came before its answer")
        if len(frame.body):
            call.joiner.add(frame.about["offset"], frame.body)
        if not call.joiner.is_complete:
            return None
        call.is_over = True
        return _answer(call.about, [memoryview(payload) for payload in call.joiner.finish()])


class _Calling:
    """The time of one call: at its end the engine is told, unless it has nothing of it."""

    def __init__(self, calls: dict[int, _Call], link: Link, call: _Call) -> None:
        self._calls = calls
        self._link = link
        self._call = call

    def __enter__(self) -> _Call:
        self._calls[self._call.number] = self._call
        return self._call

    def __exit__(self, *_: object) -> None:
        del self._calls[self._call.number]
        if self._call.said.done() and not self._call.said.cancelled():
            self._call.said.exception()  # seen: whoever asked may have left
        if not self._call.is_over:
            self._link.tell(Kind.LEAVE, self._call.number)


class _Head:
    """An output head, asked for piece by piece as its caller takes it: a front holds one piece at a time."""

    def __init__(self, num_bytes: int, call: _Call, ask_for_next: Callable[[], Awaitable[None]]) -> None:
        self.num_bytes = num_bytes
        self._call = call
        self._ask_for_next = ask_for_next

    async def chunks(self) -> AsyncIterator[tuple[int, bytes]]:
        """Give the bytes in order, each run with the place where it starts."""
        reached = 0
        while reached < self.num_bytes:
            self._call.expect()
            await self._ask_for_next()
            offset, data = await self._call.said
            yield offset, data
            reached += len(data)


def _take_head(_: _Call, frame: Frame) -> int | tuple[int, bytes]:
    if frame.kind is Kind.ANSWER:
        return int(frame.about["num_bytes"])
    if not len(frame.body):
        raise FrameError("a piece of the output head is empty")
    return int(frame.about["offset"]), bytes(frame.body)


def _answer(about: dict[str, Any], payloads: list[memoryview]) -> EncodedAnswer:
    return EncodedAnswer(
        tuple(payloads),
        str(about["fingerprint"]),
        int(about["cache_hits"]),
        float(about["queue_seconds"]),
        float(about["compute_seconds"]),
        float(about["encode_seconds"]),
    )
