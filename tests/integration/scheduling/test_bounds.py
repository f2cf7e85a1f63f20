"""What the service takes on at once has its bounds; what does not fit is refused, and told when to come again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stillhouse.status import PUSHBACK_TRAILER
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service.service import TeacherService
from tests.integration.counting_backend import CountingBackend
from tests.integration.raw_calls import ask, channel_to, compute, stream, value
from tests.waiting import until

END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # which the stubs forget

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]


async def pushback_ms(call: grpc.aio.UnaryUnaryCall[pb.ComputeLogitsRequest, pb.ComputeLogitsResponse]) -> int:
    """See a call refused as overload; return when it may come again, in milliseconds."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers: Any = refusal.value.trailing_metadata()
    return int(dict(trailers)[PUSHBACK_TRAILER])


@pytest.mark.parametrize(
    ("reason", "bounds"),
    [
        ("requests", {"max_concurrent_requests": 2}),
        ("queue_sequences", {"max_queue_sequences": 2, "max_sequences": 2}),
        ("queue_tokens", {"max_queue_tokens": 25, "max_request_tokens": 25}),
        ("held_bytes", {"max_held_bytes": 6000, "max_answer_bytes": 6000}),
    ],
)
async def test_over_a_bound_a_request_is_shed_before_anything_is_done_for_it(
    serve_teacher: ServeTeacher, valkey: str, reason: str, bounds: dict[str, int]
) -> None:
    backend = CountingBackend()
    backend.gate.clear()
    async with serve_teacher(valkey, backend, **bounds) as service, channel_to(service) as channel:
        held = [compute(channel, ask((n,) * 10, cache_mode="refresh")) for n in (1, 2)]
        await until(lambda: value(service, "teacher_requests_in_flight") == 2)
        assert await pushback_ms(compute(channel, ask((3,) * 10))) > 0
        assert value(service, "teacher_shed_total", reason=reason) == 1
        assert value(service, "teacher_cache_requests_total", result="miss") == 0
        backend.gate.set()
        await asyncio.gather(*held)
        await compute(channel, ask((3,) * 10))


async def test_slow_readers_bound_what_the_service_takes_on(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend(vocabulary_size=4096)
    # An answer has 8 MB, of which a reader that never reads leaves all but a window with the service.
    bounds = {"max_held_bytes": 20_000_000, "max_answer_bytes": 20_000_000}
    async with serve_teacher(None, backend, **bounds) as service, channel_to(service) as channel:
        readers = [stream(channel, ask(tuple(range(n, n + 500)))) for n in (1, 2)]
        for reader in readers:
            header: Any = await reader.read()
            assert header.WhichOneof("part") == "header"
        assert value(service, "teacher_held_bytes") > 16_000_000
        assert await pushback_ms(compute(channel, ask(tuple(range(3, 503))))) > 0
        assert value(service, "teacher_shed_total", reason="held_bytes") == 1
        await compute(channel, ask((1, 2, 3)))  # what is small still fits
        readers[0].cancel()
        await until(lambda: value(service, "teacher_held_bytes") < 9_000_000)
        await compute(channel, ask(tuple(range(3, 503))))
        while await readers[1].read() is not END:
            pass
        await until(lambda: value(service, "teacher_held_bytes") == 0)


async def test_the_pause_grows_with_the_backlog(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend(seconds=0.05)
    bounds = {"max_batch_tokens": 10, "max_queue_sequences": 60, "max_sequences": 60}
    pauses = []
    async with serve_teacher(None, backend, **bounds) as service, channel_to(service) as channel:
        await compute(channel, ask((1,) * 10))
        for backlog in (10, 60):
            held = compute(channel, ask(*[(n, backlog) * 5 for n in range(1, backlog + 1)]))
            await until(lambda backlog=backlog: value(service, "teacher_queue_size") == backlog)  # type: ignore[misc]  # mypy cannot type it
            too_many = ask(*[(n, 61) for n in range(1, 61)])
            pauses.append(await pushback_ms(compute(channel, too_many)))
            held.cancel()
            await until(lambda: value(service, "teacher_queue_size") == 0)
    # Half of the backlog at 0.05 s a batch of one, give or take a quarter.
    assert 150 <= pauses[0] <= 500
    assert 1000 <= pauses[1] <= 3000


async def test_health_answers_at_once_while_a_long_batch_computes(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend(seconds=2.0)
    async with serve_teacher(None, backend) as service, channel_to(service) as channel, httpx.AsyncClient() as http:
        long = compute(channel, ask((1, 2, 3)))
        await asyncio.to_thread(backend.started.wait, 10)
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(3):
            started = time.monotonic()
            alive = await http.get(f"http://127.0.0.1:{service.http_port}/livez")
            serving = await health.Check(health_pb2.HealthCheckRequest())
            assert time.monotonic() - started < 0.5
            assert alive.status_code == 200
            assert serving.status == health_pb2.HealthCheckResponse.SERVING
        assert not long.done()
        await long


# A caller that asks for answers of 3 MB in one message each, and is frozen before they come.
CALLER = """
import asyncio, sys
import grpc
from tests.integration.raw_calls import OPTIONS, ask, compute

async def main():
    async with grpc.aio.insecure_channel(sys.argv[1], options=OPTIONS) as channel:
        await asyncio.gather(*[compute(channel, ask(tuple(range(n, n + 200)))) for n in range(4)])

asyncio.run(main())
"""


async def test_an_answer_in_one_message_counts_until_it_is_read(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend(vocabulary_size=4096)
    backend.gate.clear()
    async with serve_teacher(None, backend) as service:
        argv = [sys.executable, "-c", CALLER, f"127.0.0.1:{service.grpc_port}"]
        caller = subprocess.Popen(argv, cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - quick
        try:
            await until(lambda: value(service, "teacher_requests_in_flight") == 4, 60)
            caller.send_signal(signal.SIGSTOP)
            backend.gate.set()
            await until(lambda: value(service, "teacher_queue_size") == 0)
            await asyncio.sleep(0.2)
            # Whatever the sockets' buffers took.
            assert value(service, "teacher_held_bytes") > 6_000_000
        finally:
            caller.kill()
            caller.wait(10)
        await until(lambda: value(service, "teacher_held_bytes") == 0)
