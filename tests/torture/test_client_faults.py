"""Clients that vanish, send garbage, never read, or only sit there, beside 64 that ask: these see nothing of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.torture.doors import grpc_door
from tests.torture.faults import (
    LARGE_ANSWER_BYTES,
    idle_connections,
    never_reading,
    never_reading_over_http,
    readers,
    send_garbage,
)
from tests.torture.load import Load, known_requests, load_on, watching
from tests.torture.mix import scaled
from tests.torture.reference import Reference
from tests.torture.service_process import ServiceProcess, serving, wait_until

pytestmark = pytest.mark.long

SECONDS = 15
NUM_READERS = 4
NUM_CONNECTIONS = 1000
# As a login shell sets it: less than the connections of both doors.
OPEN_FILES = 1024

SEND_STALL_SECONDS = 4.0
MAX_HELD_BYTES = 16 * LARGE_ANSWER_BYTES


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One service without a cache, so that everything is computed, for all these clients."""
    flags = (
        *("--dtype", "float32", "--send-stall-seconds", str(SEND_STALL_SECONDS)),
        *("--max-held-bytes", str(MAX_HELD_BYTES), "--max-answer-bytes", str(2 * LARGE_ANSWER_BYTES)),
    )
    with serving(tmp_path_factory.mktemp("service"), model, *flags, open_files=OPEN_FILES) as process:
        yield process


@asynccontextmanager
async def loaded(service: ServiceProcess, reference: Reference) -> AsyncIterator[Load]:
    """Load the service; at the end, every answer was right and none was lost, and nothing is held any more."""
    async with load_on(service.grpc, reference, http=service.http) as load:
        await load.until_answered(100)
        yield load
        assert load.in_flight > 0
        await load.until_answered(100)
    load.check()
    gauges = ("teacher_requests_in_flight", "teacher_held_bytes", "teacher_queue_size", "teacher_queue_tokens")
    wait_until(lambda: not any(map(service.metric, gauges)), 30, "the end of all work")
    assert service.metric("teacher_requests_total", code="INTERNAL") == 0
    assert service.metric("teacher_requests_total", code="500") == 0


async def test_clients_that_vanish_in_the_midst_of_an_answer(service: ServiceProcess, reference: Reference) -> None:
    cancelled = service.metric("teacher_requests_total", method="StreamLogits", code="CANCELLED")
    async with loaded(service, reference) as load:
        for _ in range(scaled(6)):
            # Started in a thread: the load goes on meanwhile.
            reading = readers(service.grpc, NUM_READERS)
            processes = await asyncio.to_thread(reading.__enter__)
            try:
                await load.until_answered(20)
                assert load.in_flight > 0
                for process in processes:
                    process.kill()
            finally:
                await asyncio.to_thread(reading.__exit__, None, None, None)
    after = service.metric("teacher_requests_total", method="StreamLogits", code="CANCELLED")
    assert after >= cancelled + scaled(6), "none vanished in the midst of an answer"


async def test_clients_that_change_their_minds(service: ServiceProcess, reference: Reference) -> None:
    """They ask what others ask too, and hang up at any moment: before the queue, in it, computing, while sent."""
    requests = known_requests(reference)[:100]

    async def one(seed: int, until: float) -> int:
        draw, left = random.Random(seed), 0
        async with grpc_door(service.grpc) as door:
            while time.monotonic() < until:
                request = draw.choice(requests)
                ask = door.ask(request) if draw.random() < 0.5 else door.stream(request)
                try:
                    await asyncio.wait_for(ask, draw.uniform(0, 0.05))
                except TimeoutError:
                    left += 1
        return left

    async with loaded(service, reference):
        until = time.monotonic() + scaled(SECONDS, 2)
        left = await asyncio.gather(*(one(seed, until) for seed in range(16)))
        assert sum(left) > 50
    assert service.metric("teacher_requests_total", code="CANCELLED") > 10


async def test_clients_that_send_garbage_to_both_doors(service: ServiceProcess, reference: Reference) -> None:
    async with loaded(service, reference) as load:
        seconds = scaled(SECONDS, 2)
        answered = load.answered
        senders = [
            asyncio.to_thread(send_garbage, address, random.Random(seed), seconds)
            for seed, address in enumerate((service.grpc, service.http) * 2)
        ]
        sent = await asyncio.gather(*senders)
        assert min(sent) > 10
        assert load.answered > answered + 20
    assert service.process.poll() is None


async def test_clients_that_never_read(service: ServiceProcess, reference: Reference) -> None:
    not_read = service.metric("teacher_shed_total", reason="not_read")
    async with loaded(service, reference) as load:
        before = service.rss_bytes()
        with watching(service) as samples:
            async with never_reading(service.grpc, NUM_READERS):
                with never_reading_over_http(service.http, NUM_READERS):
                    assert load.in_flight > 0
                    await asyncio.to_thread(
                        wait_until,
                        lambda: service.metric("teacher_shed_total", reason="not_read") >= not_read + NUM_READERS,
                        SEND_STALL_SECONDS + 30,
                        "the end of the answers that nobody reads",
                    )
                    await load.until_answered(20)
        assert max(samples.held_bytes) >= 2 * NUM_READERS * LARGE_ANSWER_BYTES
        assert max(samples.held_bytes) <= MAX_HELD_BYTES
        assert max(samples.rss_bytes) < before + 2 * MAX_HELD_BYTES


async def test_a_thousand_connections_that_say_nothing(service: ServiceProcess, reference: Reference) -> None:
    async with loaded(service, reference) as load:
        with (
            idle_connections(service.grpc, NUM_CONNECTIONS) as to_grpc,
            idle_connections(service.http, NUM_CONNECTIONS) as to_http,
        ):
            assert len(to_grpc) == len(to_http) == NUM_CONNECTIONS
            answered = load.answered
            # They are many, and still whoever comes anew is served.
            async with load_on(service.grpc, reference, http=service.http, clients=16, seed=1) as newcomers:
                await asyncio.sleep(scaled(SECONDS, 2))
            newcomers.check()
            assert load.answered > answered + 20
