"""Several teachers behind one client: one is killed, freezes or drains, and whoever tries again loses nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stillhouse.client import AsyncTeacherClient
from stillhouse.codec import decode_payload
from stillhouse.request import LogitsRequest, Sequence
from tests.torture.doors import Bytes, grpc_door
from tests.torture.faults import large_request
from tests.torture.load import Load, known_requests, load_on
from tests.torture.mix import scaled
from tests.torture.reference import Reference
from tests.torture.service_process import RedisProcess, ServiceProcess, redis_process, serving, wait_until

SECONDS = 10
_SERVING = health_pb2.HealthCheckResponse.SERVING
FLAGS = ("--dtype", "float32", "--cache-timeout-seconds", "0.5", "--cache-lease-seconds", "2")

Replicas = tuple[ServiceProcess, ServiceProcess]


class Pair:
    """Two teachers of one model with one Redis; one that has ended is started again, elsewhere, for the next test."""

    def __init__(self, folder: Path, model: Path, redis: RedisProcess) -> None:
        self._folder, self._model, self.redis = folder, model, redis
        self._contexts: list[ExitStack] = [ExitStack(), ExitStack()]
        self._services: list[ServiceProcess | None] = [None, None]

    def living(self) -> Replicas:
        """Return both, alive."""
        first, second = map(self._living, range(2))
        return first, second

    def _living(self, number: int) -> ServiceProcess:
        service = self._services[number]
        if service is None or service.process.poll() is not None:
            self._contexts[number].close()
            started = serving(self._folder / str(number), self._model, *FLAGS, redis_url=self.redis.url)
            service = self._services[number] = self._contexts[number].enter_context(started)
        return service

    def close(self) -> None:
        """End both."""
        for context in self._contexts:
            context.close()


@pytest.fixture(scope="module")
def pair(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two teachers and a Redis for all that is done to one of them."""
    folder = tmp_path_factory.mktemp("pair")
    with redis_process(folder / "redis") as redis:
        both = Pair(folder, model, redis)
        try:
            yield both
        finally:
            both.close()


@pytest.fixture
def replicas(pair: Pair) -> Replicas:
    """Two teachers, alive."""
    pair.redis.client.flushall()
    return pair.living()


@asynccontextmanager
async def loaded(replicas: Replicas, reference: Reference) -> AsyncIterator[Load]:
    """Load both; both have answered, and are at work, when the context begins."""
    async with load_on("ipv4:" + ",".join(replica.grpc for replica in replicas), reference) as load:
        await load.until_answered(100)
        for replica in replicas:
            await at_work(replica)
        assert load.in_flight > 0
        yield load
    load.check()


async def at_work(service: ServiceProcess, least: int = 1) -> int:
    """Wait until a service has so many requests in flight; return how many."""
    seen = [0]

    def is_at_work() -> bool:
        seen.append(int(service.metric("teacher_requests_in_flight")))
        return seen[-1] >= least

    await asyncio.to_thread(wait_until, is_at_work, 30)
    return seen[-1]


@pytest.mark.long
async def test_a_replica_killed_while_another_lives(replicas: Replicas, reference: Reference) -> None:
    async with loaded(replicas, reference) as load:
        replicas[0].process.signal(signal.SIGKILL)
        answered = load.answered
        await asyncio.sleep(scaled(SECONDS, 2))
        assert load.answered > answered + 20
    await replicas[1].becomes_empty()


@pytest.mark.long
async def test_a_replica_frozen_while_another_lives(replicas: Replicas, reference: Reference) -> None:
    async with loaded(replicas, reference) as load:
        replicas[0].process.signal(signal.SIGSTOP)
        in_flight, answered = load.in_flight, load.answered
        assert in_flight > 0
        await asyncio.sleep(scaled(SECONDS, 2))
        assert load.answered > answered
        replicas[0].process.signal(signal.SIGCONT)
        await load.until_answered(100)


@pytest.mark.long
async def test_a_replica_drains_while_another_lives(replicas: Replicas, reference: Reference) -> None:
    async with loaded(replicas, reference) as load:
        replicas[0].process.signal(signal.SIGTERM)
        answered = load.answered
        await asyncio.sleep(scaled(SECONDS, 2))
        assert load.answered > answered + 20
        assert await asyncio.to_thread(replicas[0].process.ended) == 0


@pytest.mark.long
async def test_what_a_killed_replica_had_begun_is_taken_over(
    pair: Pair, replicas: Replicas, reference: Reference
) -> None:
    """The leases of one that died keep the others from answering for no longer than they last."""
    first, second = replicas
    request = replace(large_request(0), cache_mode="use")
    async with AsyncTeacherClient(second.grpc) as client, grpc_door(first.grpc) as door:
        lost = asyncio.create_task(door.stream(request))
        await asyncio.to_thread(wait_until, lambda: list(pair.redis.client.scan_iter("lease:*")), 15, "a lease")
        first.process.signal(signal.SIGKILL)
        assert list(pair.redis.client.scan_iter("lease:*")), "it had ended its work before it was killed"
        answer = await asyncio.wait_for(client.answer(request), 20)
        assert not reference.mistakes(request, answer.payloads)
        with pytest.raises(grpc.aio.AioRpcError):
            await lost
    assert second.metric("teacher_leases_total", result="taken_over") > 0


@pytest.mark.long
async def test_replicas_compute_once_what_both_are_asked(replicas: Replicas, reference: Reference) -> None:
    requests = [replace(request, cache_mode="use") for request in known_requests(reference)[: scaled(300, 60)]]
    distinct = {
        (request.encoding, request.temperature, request.vocabulary_size, sequence)
        for request in requests
        for sequence in request.sequences
    }
    before = sum(replica.metric("teacher_queue_duration_seconds_count") for replica in replicas)
    async with grpc_door(replicas[0].grpc) as first, grpc_door(replicas[1].grpc) as second:
        both = await asyncio.gather(*(door.ask(request) for request in requests for door in (first, second)))
    for one, other in zip(both[::2], both[1::2], strict=True):
        assert one.payloads == other.payloads, "each has computed by itself"
    computed = sum(replica.metric("teacher_queue_duration_seconds_count") for replica in replicas)
    assert computed - before <= len(distinct)


async def test_a_teacher_that_drains_answers_what_is_in_flight_and_nothing_new(
    reference: Reference, tmp_path: Path
) -> None:
    requests = [large_request(seed) for seed in range(12)]
    with serving(tmp_path, reference.folder, *FLAGS) as service:
        async with grpc_door(service.grpc) as door, grpc.aio.insecure_channel(service.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            asking = [asyncio.create_task(door.stream(request)) for request in requests]
            in_flight = await at_work(service, least=4)
            service.process.signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                while (await health.Check(health_pb2.HealthCheckRequest())).status == _SERVING:  # noqa: ASYNC110 - a state in another process
                    await asyncio.sleep(0.01)
            assert not all(task.done() for task in asking), "nothing was in flight any more"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await door.ask(LogitsRequest((Sequence((1, 2, 3)),)))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
            answered = [(ask, one) for ask, one in zip(requests, outcomes, strict=True) if isinstance(one, Bytes)]
            for request, answer in answered:
                assert not reference.mistakes(request, [decode_payload(data) for data in answer.payloads])
            too_late = [one for one in outcomes if not isinstance(one, Bytes)]
            assert all(isinstance(one, grpc.aio.AioRpcError) for one in too_late), too_late
            assert len(answered) >= in_flight
        assert await asyncio.to_thread(service.process.ended) == 0
