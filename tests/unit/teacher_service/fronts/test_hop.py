"""A front's half and the engine's half over a real socket, with a teacher that says what a test wants."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from stillhouse.chunks import split
from stillhouse.encodings import Dense
from stillhouse.errors import EncodingNotOfferedError, OverloadedError, TeacherInternalError, TeacherUnavailableError
from stillhouse.request import Limits, LogitsRequest, Sequence
from stillhouse.tracing import span
from teacher_service.admission import Admission
from teacher_service.answering import CheckedRequest, EncodedAnswer
from teacher_service.auth import Access, Token
from teacher_service.fronts.arena import Arena, ArenaView
from teacher_service.fronts.engine import Engine
from teacher_service.fronts.engine_side import EngineSide, Served
from teacher_service.fronts.frames import Frame, Kind
from teacher_service.fronts.link import Link, StalledError
from teacher_service.metrics import Metrics
from teacher_service.request_reading import RequestReader
from tests.waiting import until

ARENA_BYTES = 8 * 2**20
HEAD = bytes(range(256)) * 20_000


class SaidTeacher:
    """Answers each sequence with as many bytes as its first id says, once its gate is open."""

    def __init__(self) -> None:
        self.description = type("Description", (), {"limits": Limits()})()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.waiting = self.asked = 0

    def check(self, request: LogitsRequest) -> CheckedRequest:
        return CheckedRequest(request, (), 0)

    @asynccontextmanager
    async def answering(self, asked: CheckedRequest, *, is_looked_up: bool) -> AsyncIterator[EncodedAnswer]:
        assert is_looked_up
        self.asked += 1
        self.waiting += 1
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            yield EncodedAnswer(tuple(map(payload_of, asked.request.sequences)), "f" * 32, 1, 0.25, 0.5, 0.75)
        finally:
            self.waiting -= 1


class SaidHeads:
    """One output head, in pieces."""

    def __init__(self) -> None:
        self.given = 0
        self.in_use = 0
        self.num_bytes = len(HEAD)

    @asynccontextmanager
    async def sending(self, value_type: str | None) -> AsyncIterator[SaidHeads]:
        if value_type == "float32":
            raise EncodingNotOfferedError("none of that kind")
        self.in_use += 1
        try:
            yield self
        finally:
            self.in_use -= 1

    async def chunks(self) -> AsyncIterator[tuple[int, bytes]]:
        for chunk in split([HEAD], 2**16):
            self.given += 1
            yield chunk


def payload_of(sequence: Sequence) -> bytes:
    return bytes([sequence.token_ids[1]]) * sequence.token_ids[0]


def asked(*sizes: int) -> LogitsRequest:
    return LogitsRequest(tuple(Sequence((size, number)) for number, size in enumerate(sizes, 1)), Dense())


class Hop:
    """Both halves."""

    def __init__(self, front: Link, engine: Link, tokens: tuple[Token, ...]) -> None:
        self.teacher, self.heads, self.metrics = SaidTeacher(), SaidHeads(), Metrics()
        self.arena = Arena(ARENA_BYTES)
        self.front = Engine(front, ArenaView(os.dup(self.arena.descriptor)), max_answer_bytes=2**28)
        self.front_link, self.engine_link = front, engine
        admission = Admission(
            Access(tokens), self.metrics, max_requests_per_token=2, max_seconds=20, shows_callers=False
        )
        served = Served(cast("Any", self.teacher), cast("Any", self.heads))
        self.told: list[Frame] = []
        self.side = EngineSide(engine, self.arena, lambda: served, admission, RequestReader(), self.told.append)
        self.tasks = [asyncio.create_task(self.side.run()), asyncio.create_task(self._listen())]

    async def _listen(self) -> None:
        while (frame := await self.front_link.receive()) is not None:
            self.front.hear(frame)
        self.front.end()

    async def ask(self, request: LogitsRequest) -> list[bytes]:
        async with self.front.asking(request, caller="trainer", request_id="named") as answer:
            assert (answer.fingerprint, answer.cache_hits) == ("f" * 32, 1)
            assert (answer.queue_seconds, answer.compute_seconds, answer.encode_seconds) == (0.25, 0.5, 0.75)
            return list(map(bytes, answer.payloads))


@asynccontextmanager
async def hop(*tokens: Token) -> AsyncIterator[Hop]:
    ours, theirs = socket.socketpair()
    made = Hop(await Link.over(ours), await Link.over(theirs, stall_seconds=0.3), tokens)
    try:
        yield made
    finally:
        made.front_link.close()
        made.engine_link.close()
        await asyncio.wait(made.tasks)
        made.arena.close()


SIZES = [
    (0,),
    (1,),
    (10, 0, 20),
    (70_000,),
    (65_536,),
    (3_000_000, 5),
    (ARENA_BYTES,),
    (ARENA_BYTES + 1, 3),
    (20_000_000,),
]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "+".join(map(str, sizes)))
async def test_bytes_come_as_they_are_however_they_travel(sizes: tuple[int, ...]) -> None:
    async with hop() as both:
        request = asked(*sizes)
        assert await both.ask(request) == list(map(payload_of, request.sequences))
        await until(lambda: both.arena.taken_bytes == 0)


async def test_many_at_once_do_not_mix() -> None:
    async with hop() as both:
        requests = [asked(*(1000 * (number + 1) * (1 + number % 90),)) for number in range(60)]
        answers = await asyncio.gather(*map(both.ask, requests))
        for request, answer in zip(requests, answers, strict=True):
            assert answer == list(map(payload_of, request.sequences))
        await until(lambda: both.arena.taken_bytes == 0)


async def test_shared_memory_is_kept_as_long_as_the_answer_is_sent() -> None:
    async with hop() as both:
        async with both.front.asking(asked(100_000), caller="trainer", request_id="") as answer:
            await both.ask(asked(200_000))
            assert bytes(answer.payloads[0]) == b"\x01" * 100_000
            await until(lambda: 100_000 <= both.arena.taken_bytes < 200_000)
        await until(lambda: both.arena.taken_bytes == 0)


async def test_an_error_comes_as_it_is() -> None:
    async with hop() as both:
        both.teacher.error = OverloadedError("full", 0.75)
        with pytest.raises(OverloadedError, match="full") as refusal:
            await both.ask(asked(1))
        assert refusal.value.retry_after_seconds == 0.75
        both.teacher.error = ZeroDivisionError("/a/folder")
        with pytest.raises(TeacherInternalError, match="its log says more"):
            await both.ask(asked(1))
        both.teacher.error = None
        assert await both.ask(asked(1)) == [b"\x01"]


async def test_whoever_leaves_takes_their_place_along() -> None:
    async with hop() as both:
        both.teacher.gate.clear()
        tasks = [asyncio.create_task(both.ask(asked(100_000))) for _ in range(3)]
        await until(lambda: both.teacher.waiting == 3)
        tasks[0].cancel()
        await until(lambda: both.teacher.waiting == 2)
        both.teacher.gate.set()
        assert await asyncio.gather(*tasks[1:]) == [[b"\x01" * 100_000]] * 2
        await until(lambda: both.arena.taken_bytes == 0)


async def test_whoever_leaves_at_any_moment_leaves_nothing_behind() -> None:
    async with hop() as both:
        for number in range(60):
            task = asyncio.create_task(both.ask(asked(3_000_000 if number % 2 else 20_000_000)))
            await asyncio.sleep(0.0005 * (number % 20))
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await until(lambda: both.arena.taken_bytes == 0 and both.teacher.waiting == 0)
        assert await both.ask(asked(5)) == [b"\x01" * 5]


async def test_a_front_that_has_gone_leaves_nothing_behind() -> None:
    async with hop() as both:
        both.teacher.gate.clear()
        tasks = [asyncio.create_task(both.ask(asked(1))) for _ in range(5)]
        await until(lambda: both.teacher.waiting == 5)
        both.front_link.close()
        await until(lambda: both.teacher.waiting == 0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_an_engine_that_has_gone_is_told_of() -> None:
    async with hop() as both:
        both.teacher.gate.clear()
        task = asyncio.create_task(both.ask(asked(1)))
        await until(lambda: both.teacher.waiting == 1)
        both.engine_link.close()
        with pytest.raises(TeacherUnavailableError, match="stopped before"):
            await task


async def test_one_caller_is_bounded_over_all_calls() -> None:
    async with hop(Token.of("trainer", "x" * 20)) as both:
        both.teacher.gate.clear()
        tasks = [asyncio.create_task(both.ask(asked(1))) for _ in range(2)]
        await until(lambda: both.teacher.waiting == 2)
        with pytest.raises(OverloadedError, match="trainer has 2 requests in flight"):
            await both.ask(asked(1))
        both.teacher.gate.set()
        await asyncio.gather(*tasks)
        assert both.metrics.registry.get_sample_value("teacher_caller_requests", {"caller": "trainer"}) is None


async def test_a_head_is_sent_as_it_is_taken() -> None:
    async with hop() as both:
        async with both.front.sending(None) as head:
            assert head.num_bytes == len(HEAD)
            chunks = head.chunks()
            assert await anext(chunks) == (0, HEAD[: 2**16])
            await asyncio.sleep(0.05)
            assert both.heads.given == 2, "more was made than was asked for"
            rest = [data async for _, data in chunks]
        assert HEAD[: 2**16] + b"".join(rest) == HEAD
        await until(lambda: both.heads.in_use == 0)
        with pytest.raises(EncodingNotOfferedError, match="none of that kind"):
            async with both.front.sending("float32"):
                pass


async def test_a_caller_of_the_head_that_leaves_gives_it_back() -> None:
    async with hop() as both:
        async with both.front.sending(None) as head:
            await anext(head.chunks())
            assert both.heads.in_use == 1
        await until(lambda: both.heads.in_use == 0)


async def test_nothing_is_queued_for_an_engine_that_reads_nothing() -> None:
    ours, theirs = socket.socketpair()
    arena = Arena(2**16)
    link = await Link.over(ours)
    front = Engine(link, ArenaView(os.dup(arena.descriptor)), max_answer_bytes=2**20)
    request = LogitsRequest((Sequence((1,) * 8000),), Dense())

    async def ask_in_vain() -> None:
        async with asyncio.timeout(0.01), front.asking(request, caller="", request_id=""):
            pass

    for _ in range(400):
        with pytest.raises(TimeoutError):
            await ask_in_vain()
    assert link._writer.transport.get_write_buffer_size() < 2**18
    link.close()
    theirs.close()
    arena.close()


async def test_a_front_that_reads_nothing_is_hung_up_on() -> None:
    ours, theirs = socket.socketpair()
    link = await Link.over(ours, stall_seconds=0.1)

    async def fill() -> None:
        while True:
            await link.send(Kind.PIECE, body=bytes(2**20))

    with pytest.raises(StalledError, match="nothing was taken"):
        await fill()
    link.close()
    theirs.close()


async def test_a_span_of_the_engine_belongs_to_the_fronts(spans: Any) -> None:
    async with hop() as both:
        with span("ComputeLogits"):
            await both.ask(asked(1))
        await until(lambda: len(spans.get_finished_spans()) == 2)
    traced = {one.name: one for one in spans.get_finished_spans()}
    asked_for, answered = traced["ComputeLogits"], traced["answer for a front"]
    assert answered.parent.span_id == asked_for.context.span_id
    assert answered.attributes["request_id"] == "named"
