"""In deterministic mode the bytes of an answer follow from its request alone.

2,000 mixed requests, asked one by one of a service that waits for no company, then among others in batches of every
makeup, in three orders, and of a service that has started anew with nothing remembered.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from stillhouse.request import LogitsRequest
from tests.torture.doors import grpc_door
from tests.torture.mix import COUNT, mixed, scaled
from tests.torture.service_process import RedisProcess, ServiceProcess, serving

NUM_REQUESTS = 2000
LONGEST = 160

Payloads = list[tuple[bytes, ...]]


def some_requests(count: int) -> list[LogitsRequest]:
    """Return mixed requests that nobody remembers: each is computed as often as it is asked."""
    return [replace(request, cache_mode="bypass") for request in islice(mixed(5, longest=LONGEST), count)]


async def ask_all(address: str, requests: SequenceOf[LogitsRequest], at_once: int, order: int) -> Payloads:
    """Ask with so many in flight, in the order of a seed; return the bytes in the order of the requests."""
    payloads: Payloads = [()] * len(requests)
    indices = list(range(len(requests)))
    random.Random(order).shuffle(indices)
    waiting = iter(indices)
    async with grpc_door(address) as door:

        async def worker() -> None:
            for index in waiting:
                payloads[index] = (await door.ask(requests[index])).payloads

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    return payloads


def different(one: Payloads, other: Payloads) -> list[int]:
    """Return the requests that were answered in other bytes."""
    return [index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


# What shares a batch: by waiting for no company, a little, or long; in batches of few tokens and of many.
MAKEUPS = [
    (1, ("--max-queue-delay-seconds", "0")),
    (8, ("--max-queue-delay-seconds", "0.002")),
    (64, ("--max-queue-delay-seconds", "0.002", "--max-batch-tokens", "512")),
    (64, ("--max-queue-delay-seconds", "0.05", "--max-batch-tokens", "16384")),
]


async def hold(folder: Path, model: Path, num_requests: int, makeups: SequenceOf[tuple[int, tuple[str, ...]]]) -> None:
    requests = some_requests(num_requests)
    flags = ("--mode", "deterministic", "--dtype", "float32")
    expected: Payloads = []
    for number, (at_once, more) in enumerate(makeups):
        # Each service is another process, and has no cache.
        with serving(folder / str(number), model, *flags, *more) as service:
            for order in range(3 if at_once == 64 else 1):
                answers = await ask_all(service.grpc, requests, at_once, order)
                expected = expected or answers
                found = different(answers, expected)
                assert not found, (at_once, more, order, [requests[index] for index in found[:3]])
            batches = service.metric("teacher_batch_tokens_count")
            computed = service.metric("teacher_queue_duration_seconds_count")
        if at_once == 64:
            assert computed > 2 * batches, "they did not share their batches"


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("pass_tokens", [0, 256])
async def test_the_bytes_of_an_answer_follow_from_its_request_alone(
    model: Path, tmp_path: Path, pass_tokens: int
) -> None:
    chosen = MAKEUPS if COUNT >= 1 else [MAKEUPS[0], MAKEUPS[3 if pass_tokens else 2]]
    makeups = [(at_once, (*flags, "--deterministic-pass-tokens", str(pass_tokens))) for at_once, flags in chosen]
    await hold(tmp_path, model, scaled(NUM_REQUESTS, 100), makeups)


async def test_a_few_answers_have_the_same_bytes_among_others(bounded: tuple[ServiceProcess, RedisProcess]) -> None:
    requests = some_requests(60)
    alone = await ask_all(bounded[0].grpc, requests, 1, 0)
    assert not different(await ask_all(bounded[0].grpc, requests, 64, 1), alone)


@pytest.mark.long
async def test_in_throughput_mode_neighbours_show(model: Path, tmp_path: Path) -> None:
    """Were it otherwise, the tests above could not fail."""
    requests = some_requests(scaled(400, 100))
    flags = ("--mode", "throughput", "--dtype", "float32", "--max-queue-delay-seconds", "0.02")
    with serving(tmp_path, model, *flags) as service:
        alone = await ask_all(service.grpc, requests, 1, 0)
        among_others = await ask_all(service.grpc, requests, 64, 0)
    assert different(among_others, alone)
