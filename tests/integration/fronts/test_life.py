"""Fronts open with the service, drain with it, are started again when they die, and never outlive it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stillhouse.errors import ConfigurationError, StillhouseError
from teacher_service.fronts import supervisor
from teacher_service.fronts.supervisor import Fronts
from teacher_service.service import TeacherService
from tests.integration.counting_backend import CountingBackend
from tests.integration.raw_calls import OPTIONS, ask, channel_to, compute, value
from tests.waiting import until

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

# Of its own for each channel: so the kernel deals them out.
OWN_CONNECTION = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]


def fronts_of(service: TeacherService) -> Fronts:
    fronts = service._doors.fronts
    assert fronts is not None
    return fronts


@asynccontextmanager
async def channels_to(service: TeacherService, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    address = f"127.0.0.1:{service.grpc_port}"
    channels = [grpc.aio.insecure_channel(address, options=OWN_CONNECTION) for _ in range(count)]
    try:
        yield channels
    finally:
        await asyncio.gather(*(channel.close(None) for channel in channels))


async def code_of(call: Any) -> str:
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call
    return str((await call.code()).name)


async def health(channel: grpc.aio.Channel) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return int(answer.status)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_hits_and_health_are_answered_while_the_model_computes(serve_teacher: ServeTeacher, valkey: str) -> None:
    backend = CountingBackend()
    async with serve_teacher(valkey, backend, front_processes=2) as service, channels_to(service, 4) as channels:
        await compute(channels[0], ask((9, 9, 9)))
        backend.gate.clear()
        backend.started.clear()
        missing = compute(channels[0], ask((9, 8, 7)))
        await asyncio.to_thread(backend.started.wait, 10)
        for channel in channels:
            assert (await compute(channel, ask((9, 9, 9)), timeout=5)).cache_hits == 1
            assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        assert not missing.done()
        backend.gate.set()
        assert (await missing).cache_hits == 0


async def test_what_fronts_ask_for_together_is_computed_once(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend()
    backend.gate.clear()
    async with serve_teacher(None, backend, front_processes=3) as service, channels_to(service, 9) as channels:
        calls = [compute(channel, ask((1, 2, 3))) for channel in channels]
        await until(lambda: value(service, "teacher_joined_total") == 8)
        backend.gate.set()
        assert len({bytes((await call).payloads[0]) for call in calls}) == 1
        await service.metrics.refresh()
        assert value(service, "teacher_requests_total", method="ComputeLogits", code="OK") == 9
    assert backend.batches == [[3]]


async def test_while_weights_load_fronts_answer_that_they_do(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(front_processes=1) as service:
        fronts = fronts_of(service)
        # One that starts while there is no teacher yet.
        served, fronts._served = fronts._served, None
        os.kill(fronts.pids[1], signal.SIGKILL)
        before = fronts.pids[1]
        await until(lambda: fronts.pids.get(1, before) != before)
        await asyncio.wait_for(fronts._living[1].listening, 30)
        async with channel_to(service) as channel:
            assert await health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
            call = compute(channel, ask((1,)))
            assert await code_of(call) == "UNAVAILABLE"
            assert "loading its weights" in await call.details()
            assert served is not None
            await fronts.begin(served.teacher, served.heads)
            assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
            assert await code_of(compute(channel, ask((1,)))) == "OK"


async def test_a_drain_finishes_what_is_in_flight(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend()
    backend.gate.clear()
    async with serve_teacher(None, backend, front_processes=2) as service, channels_to(service, 4) as channels:
        asked = [compute(channel, ask((number,))) for number, channel in enumerate(channels, 1)]
        await until(lambda: value(service, "teacher_queue_size") == 4)
        pids = list(fronts_of(service).pids.values())
        closing = asyncio.create_task(service.close())
        await until(lambda: service.lifecycle.phase == "draining")
        await asyncio.sleep(0.3)
        for channel in channels:
            assert await health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
            late = compute(channel, ask((1,)))
            assert await code_of(late) == "UNAVAILABLE"
            assert "draining" in await late.details()
        backend.gate.set()
        assert [await code_of(call) for call in asked] == ["OK"] * 4
        await closing
        assert all(map(is_gone, pids))


async def test_what_outlives_the_grace_is_told_so(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend()
    backend.gate.clear()
    settings = {"front_processes": 2, "grace_seconds": 0.2}
    async with serve_teacher(None, backend, **settings) as service, channels_to(service, 2) as channels:
        asked = [compute(channel, ask((number,))) for number, channel in enumerate(channels, 1)]
        await until(lambda: value(service, "teacher_queue_size") == 2)
        closing = asyncio.create_task(service.close())
        assert [await code_of(call) for call in asked] == ["UNAVAILABLE"] * 2
        assert "stopped before it could answer" in await asked[0].details()
        backend.gate.set()
        await closing


async def test_a_front_that_is_killed_comes_back_and_gives_all_back(serve_teacher: ServeTeacher) -> None:
    backend = CountingBackend()
    backend.gate.clear()
    async with serve_teacher(None, backend, front_processes=2) as service, channels_to(service, 16) as channels:
        first = compute(channels[0], ask((1,)))
        await asyncio.to_thread(backend.started.wait, 10)
        asked = [compute(channel, ask((number,))) for number, channel in enumerate(channels[1:], 2)]
        await until(lambda: value(service, "teacher_queue_size") == 16)
        await service.metrics.refresh()
        fronts = fronts_of(service)
        pids = fronts.pids
        counts = {number: len(front_connections(pid, service.grpc_port)) for number, pid in pids.items()}
        assert sum(counts.values()) == 16
        os.kill(pids[1], signal.SIGKILL)
        # All that it had asked for leaves the queue.
        await until(lambda: value(service, "teacher_queue_size") == counts[2])
        await until(lambda: fronts.pids.get(1, pids[1]) != pids[1])
        backend.gate.set()
        codes = [await code_of(call) for call in (first, *asked)]
        assert codes.count("OK") == counts[2]
        assert codes.count("UNAVAILABLE") == counts[1]
        assert fronts.pids[2] == pids[2]
        await fronts._living[1].listening
        async with channels_to(service, 16) as others:
            assert [await code_of(compute(channel, ask((50,)))) for channel in others] == ["OK"] * 16
            assert front_connections(fronts.pids[1], service.grpc_port)
        assert value(service, "teacher_queue_size") == 0


def front_connections(pid: int, port: int) -> list[Any]:
    found = psutil.Process(pid).net_connections("tcp")
    return [one for one in found if one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port]


async def test_what_a_dead_front_had_counted_stays_counted(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(front_processes=1) as service:
        fronts = fronts_of(service)
        for round_ in (1, 2):
            async with channel_to(service) as channel:
                for number in range(5):
                    await compute(channel, ask((number,)))
            await service.metrics.refresh()
            assert value(service, "teacher_requests_total", method="ComputeLogits", code="OK") == 5 * round_
            pid = fronts.pids[1]
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: fronts.pids.get(1, pid) != pid)  # type: ignore[misc]  # mypy cannot type it
            await fronts._living[1].is_open.wait()
        assert value(service, "teacher_requests_total", method="ComputeLogits", code="OK") == 10


async def test_a_front_that_hangs_is_ended_and_started_again(
    serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(supervisor, "_SCRAPE_SECONDS", 0.2)
    monkeypatch.setattr(supervisor, "_MOST_SILENT_BEATS", 3)
    async with serve_teacher(front_processes=1) as service:
        fronts = fronts_of(service)
        pid = fronts.pids[1]
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: fronts.pids.get(1, pid) != pid)
        assert is_gone(pid)
        await fronts._living[1].is_open.wait()
        async with channel_to(service) as channel:
            assert await code_of(compute(channel, ask((1,)))) == "OK"


async def test_fronts_that_keep_dying_end_the_service(serve_teacher: ServeTeacher) -> None:
    async def kill_again_and_again() -> None:
        async with serve_teacher(front_processes=1) as service:
            fronts = fronts_of(service)
            for _ in range(6):
                await until(lambda: 1 in fronts.pids)
                pid = fronts.pids[1]
                os.kill(pid, signal.SIGKILL)
                await until(lambda pid=pid: fronts.pids.get(1) != pid)  # type: ignore[misc]  # mypy cannot type it
            await until(fronts._failed.done)

    with pytest.raises(StillhouseError, match="front processes keep ending"):
        await kill_again_and_again()


@pytest.mark.parametrize("fronts", [0, 2])
async def test_a_second_service_on_the_port_is_refused(serve_teacher: ServeTeacher, fronts: int) -> None:
    async with serve_teacher(front_processes=2) as service:
        with pytest.raises(ConfigurationError, match="grpc_port: cannot listen"):
            async with serve_teacher(front_processes=fronts, grpc_port=service.grpc_port):
                pass
        async with channel_to(service) as channel:
            assert await code_of(compute(channel, ask((1,)))) == "OK"


@pytest.mark.parametrize("shares", [False, True])
async def test_a_port_that_another_listens_on_is_refused(serve_teacher: ServeTeacher, shares: bool) -> None:
    with socket.socket() as foreign:
        if shares:
            foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        with pytest.raises(ConfigurationError, match="grpc_port: cannot listen"):
            async with serve_teacher(front_processes=1, grpc_port=foreign.getsockname()[1]):
                pass


async def test_the_port_stays_ours_while_a_front_is_away(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(front_processes=1) as service:
        fronts = fronts_of(service)
        pid = fronts.pids[1]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: is_gone(pid))
        with socket.socket() as foreign, pytest.raises(OSError, match="in use"):
            foreign.bind(("127.0.0.1", service.grpc_port))
