"""Several replicas over one Redis compute a thing once, and a dead one keeps nobody waiting for long."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import redis.asyncio as redis_asyncio

from teacher_service.service import TeacherService
from tests.integration.cache.valkey_process import ValkeyProcess
from tests.integration.counting_backend import CountingBackend
from tests.integration.raw_calls import ask, channel_to, compute, value
from tests.waiting import until

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

# A replica that begins to compute and never ends.
REPLICA = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
from teacher_service.service import TeacherService
from teacher_service.settings import TeacherSettings
from tests.integration.counting_backend import CountingBackend
from tests.integration.raw_calls import ask, channel_to, compute

async def main():
    backend = CountingBackend(seconds=3600)
    settings = TeacherSettings(backend="fixture", http_port=0, grpc_port=0, cache_lease_seconds=float(sys.argv[2]))
    service = TeacherService(settings, ThreadPoolExecutor(1), sys.argv[1], opener=lambda _: backend)
    await service.open()
    await service.load()
    await compute(channel_to(service), ask((1, 2, 3), (4, 5)))

asyncio.run(main())
"""


async def test_what_two_replicas_are_asked_at_once_is_computed_once(
    serve_teacher: ServeTeacher, own_valkey: ValkeyProcess
) -> None:
    backends = [CountingBackend(seconds=0.5) for _ in range(2)]
    # Shorter than the computation: the lease is renewed meanwhile.
    settings = {"cache_lease_seconds": 0.2}
    async with (
        serve_teacher(own_valkey.url, backends[0], **settings) as first,
        serve_teacher(own_valkey.url, backends[1], **settings) as second,
        channel_to(first) as one,
        channel_to(second) as other,
    ):
        request = ask((1, 2, 3), (4, 5), (6,))
        calls = [compute(channel, request) for channel in (one, other) for _ in range(3)]
        answers = await asyncio.gather(*calls)
        assert len({tuple(answer.payloads) for answer in answers}) == 1
        assert sum(backend.num_tokens for backend in backends) == 6
        computed, waited = (
            [value(service, "teacher_leases_total", result=result) for service in (first, second)]
            for result in ("claimed", "waited")
        )
        assert sum(computed) == sum(waited) == 3
        async with redis_asyncio.Redis.from_url(own_valkey.url) as redis:
            assert len(await redis.keys()) == 3  # no lease is left


async def test_each_takes_a_part_of_what_overlaps(serve_teacher: ServeTeacher, own_valkey: ValkeyProcess) -> None:
    backends = [CountingBackend(seconds=0.1) for _ in range(2)]
    async with (
        serve_teacher(own_valkey.url, backends[0]) as first,
        serve_teacher(own_valkey.url, backends[1]) as second,
        channel_to(first) as one,
        channel_to(second) as other,
    ):
        await asyncio.gather(
            compute(one, ask(*[(n, n) for n in range(1, 40)])), compute(other, ask(*[(n, n) for n in range(20, 60)]))
        )
    assert sum(backend.num_tokens for backend in backends) == 2 * 59


async def test_a_replica_that_is_killed_is_taken_over_within_its_lease(
    serve_teacher: ServeTeacher, own_valkey: ValkeyProcess
) -> None:
    lease_seconds = 1.0
    backend = CountingBackend()
    argv = [sys.executable, "-c", REPLICA, own_valkey.url, str(lease_seconds)]
    async with (
        serve_teacher(own_valkey.url, backend, cache_lease_seconds=lease_seconds) as service,
        channel_to(service) as channel,
        redis_asyncio.Redis.from_url(own_valkey.url) as redis,
    ):
        replica = subprocess.Popen(argv, cwd=Path(__file__).parents[3])  # noqa: ASYNC220 - quick
        try:
            async with asyncio.timeout(60):
                while len(await redis.keys("lease:*")) < 2:
                    assert replica.poll() is None
                    await asyncio.sleep(0.01)
            call = compute(channel, ask((1, 2, 3), (4, 5)))
            await asyncio.sleep(1.2 * lease_seconds)
            assert not call.done()  # it lives, and renews its lease
            replica.kill()
            killed = time.monotonic()
            await call
            assert time.monotonic() - killed < lease_seconds + 0.5
        finally:
            replica.kill()
            replica.wait(10)
        assert backend.num_tokens == 5
        assert value(service, "teacher_leases_total", result="taken_over") == 2


async def test_who_gives_up_hands_over_at_once(serve_teacher: ServeTeacher, own_valkey: ValkeyProcess) -> None:
    slow, quick = CountingBackend(), CountingBackend()
    slow.gate.clear()
    async with (
        serve_teacher(own_valkey.url, slow, cache_lease_seconds=600) as first,
        serve_teacher(own_valkey.url, quick, cache_lease_seconds=600) as second,
        channel_to(first) as one,
        channel_to(second) as other,
    ):
        busy = compute(one, ask((9,)))
        await asyncio.to_thread(slow.started.wait, 10)
        gone = compute(one, ask((1, 2, 3)))
        await until(lambda: value(first, "teacher_leases_total", result="claimed") == 2)
        stays = compute(other, ask((1, 2, 3)))
        await until(lambda: value(second, "teacher_cache_requests_total", result="miss") == 1)
        gone.cancel()
        async with asyncio.timeout(10):
            await stays
        slow.gate.set()
        await busy
    assert (slow.batches, quick.batches) == ([[1]], [[3]])


async def test_a_value_set_just_after_the_lookup_is_not_computed_again(
    serve_teacher: ServeTeacher, own_valkey: ValkeyProcess
) -> None:
    backend = CountingBackend()
    async with serve_teacher(own_valkey.url, backend) as service, channel_to(service) as channel:
        recall = service.lifecycle.teacher._recall
        assert recall is not None
        look_up, first_is_done = recall.look_up, asyncio.Event()

        async def slow_look_up(expected):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as what it stands for
            found = await look_up(expected)
            await first_is_done.wait()
            return found

        recall.look_up = slow_look_up  # type: ignore[method-assign]  # so that its answer is an old one
        late = compute(channel, ask((1, 2, 3)))
        await until(lambda: value(service, "teacher_cache_requests_total", result="miss") == 1)
        recall.look_up = look_up  # type: ignore[method-assign]  # as above
        await compute(channel, ask((1, 2, 3)))
        first_is_done.set()
        assert (await late).cache_hits == 1
    assert backend.num_tokens == 3


async def test_without_a_lease_each_computes_for_itself(serve_teacher: ServeTeacher, own_valkey: ValkeyProcess) -> None:
    backends = [CountingBackend(seconds=0.3) for _ in range(2)]
    async with (
        serve_teacher(own_valkey.url, backends[0], cache_lease_seconds=0) as first,
        serve_teacher(own_valkey.url, backends[1], cache_lease_seconds=0) as second,
        channel_to(first) as one,
        channel_to(second) as other,
    ):
        await asyncio.gather(compute(one, ask((1, 2))), compute(other, ask((1, 2))))
    assert [backend.num_tokens for backend in backends] == [2, 2]
