"""Is the simulation right? It must agree with laws that hold whatever the order of events, and with the real service.

The laws are those of operational analysis. The real service has a model that sleeps, and real clients on this machine;
the simulation is given what a request takes beside the model, measured with a model that takes no time.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks._cluster.bounds import chain_seconds, demands, least_step_seconds
from benchmarks._cluster.parts import Cluster, Form, Service, Worker
from benchmarks._cluster.scenarios import CODINGS, cluster
from benchmarks._cluster.simulation import Outcome, simulate_callers, simulate_training
from benchmarks._cost.point import Point
from benchmarks._cost.requests import SEQUENCE_TOKENS, VOCABULARY, Callers
from benchmarks._slow_service import slow_service
from stillhouse.async_client import AsyncTeacherClient

BATCH_SECONDS, BATCH_SEQUENCES, QUEUE_SEQUENCES = 0.05, 4, 16
CALLERS = (1, 2, 4, 6, 8, 12, 24)
SEEDS = 10
CLIENT_ATTEMPTS = 12
"""What a client does unless somebody sets it."""
BUSY = 24
"""So many callers measure what a request takes of the busiest core."""


def law_points(*, quick: bool) -> Iterator[Point]:
    """Return what the simulation gives beside what must be."""
    alone = _service_of(request_seconds=0.001, delay_seconds=0.002)
    service_seconds = alone.service.request_seconds + alone.service.request_delay_seconds + BATCH_SECONDS
    outcome = simulate_callers(alone, 1, seconds=20, warm_up=2)
    yield _law("one caller: 1 / time", "N", 1, outcome.questions_s, 1 / service_seconds, "requests/s")
    for callers in (12, 16):
        outcome = simulate_callers(alone, callers, seconds=20, warm_up=2)
        yield _law(
            "saturated: model's rate", "N", callers, outcome.questions_s, BATCH_SEQUENCES / BATCH_SECONDS, "requests/s"
        )
        yield from _laws_of_calls(outcome, "N", callers)
    steps = 12 if quick else 30
    for coding in CODINGS[:1] if quick else CODINGS[:3]:
        # A part of the cluster, so that a window is long beside what is under way at its ends.
        base = replace(cluster(coding), teachers=2, students=32, micro_shards=64, save_steps=0)
        assert base.redis is not None
        patient = replace(base, redis=replace(base.redis, timeout_seconds=1e6))
        for ratio in (0.0, 1.0):
            one = replace(patient, cache_ratio=ratio)
            outcome = simulate_training(one, steps=steps, warm_up=4)
            yield _law(
                f"step, {coding.name}", "remembered", ratio, outcome.seconds / steps, least_step_seconds(one), "s"
            )
            yield from _laws_of_calls(outcome, "remembered", ratio)
            yield from _utilisation_laws(one, outcome, coding.name, ratio)
    idle = replace(base, teachers=64, students=4, micro_shards=8, redis=None)
    outcome = simulate_training(idle, steps=steps, warm_up=2)
    yield _law("step, more teachers than needed", "teachers", 64, outcome.seconds / steps, chain_seconds(idle), "s")


def _laws_of_calls(outcome: Outcome, x_name: str, x: float) -> Iterator[Point]:
    """Little's law: the mean number inside is the rate times the mean stay, each counted by itself."""
    foretold = outcome.calls_s * outcome.service_seconds
    yield _law("Little's law: calls inside", x_name, x, outcome.in_service, foretold, "calls")


def _utilisation_laws(one: Cluster, outcome: Outcome, name: str, ratio: float) -> Iterator[Point]:
    """The utilisation law: a resource is busy for the rate of steps times what a step takes of it."""
    rate = outcome.steps / outcome.seconds
    for resource, seconds in demands(one).items():
        if rate * seconds > 0.02:
            busy = outcome.utilisation[resource]
            yield _law(f"utilisation of {resource}, {name}", "remembered", ratio, busy, rate * seconds, "1")


def _law(curve: str, x_name: str, x: float, simulated: float, foretold: float, unit: str) -> Point:
    return Point(curve, x_name, x, simulated, foretold, unit, "formula")


def _service_of(
    *,
    request_seconds: float,
    delay_seconds: float,
    batch_seconds: float = BATCH_SECONDS,
    sequence_seconds: float = 0.0,
) -> Cluster:
    """Return one teacher with the bounds and the model of the real service below."""
    service = Service(
        token_seconds=sequence_seconds / SEQUENCE_TOKENS,
        batch_seconds=batch_seconds,
        request_seconds=request_seconds,
        request_delay_seconds=delay_seconds,
        max_batch_tokens=BATCH_SEQUENCES * SEQUENCE_TOKENS,
        max_queue_sequences=QUEUE_SEQUENCES,
    )
    return Cluster(
        form=Form("top_k:8", 64.0, 64.0),
        service=service,
        student=Worker(0, 0),
        teachers=1,
        shard_sequences=1,
        sequence_tokens=SEQUENCE_TOKENS,
    )


def service_points(*, quick: bool) -> tuple[list[Point], float]:
    """Return requests a second and refusals, simulated beside measured, and the middle ratio of the rates."""
    bounds = {
        "cache": "off",
        "max_batch_tokens": BATCH_SEQUENCES * SEQUENCE_TOKENS,
        "max_queue_sequences": QUEUE_SEQUENCES,
        "max_sequences": QUEUE_SEQUENCES,
    }
    with (
        slow_service(BATCH_SECONDS, VOCABULARY, bounds) as asleep,
        slow_service(0.0, VOCABULARY, {"cache": "off"}) as idle,
    ):
        return asyncio.run(_compare(asleep, idle, quick))


async def _compare(asleep: str, idle: str, quick: bool) -> tuple[list[Point], float]:
    rounds, seconds = (1, 1.0) if quick else (2, 1.8)
    numbers = CALLERS[::3] if quick else CALLERS
    rates: dict[int, list[float]] = {n: [] for n in numbers}
    refusals: dict[int, list[float]] = {n: [] for n in numbers}
    alone, busy = [], []
    async with AsyncTeacherClient(asleep) as client, AsyncTeacherClient(idle) as free:
        slow, fast = Callers(client), Callers(free)
        ones, fours = Callers(client), Callers(client, BATCH_SEQUENCES)
        for _ in range(rounds):
            await fast.be_alone()
            alone.append(1 / await fast.rate(1, seconds / 2))
            busy.append(1 / await fast.rate(BUSY, seconds / 2))
            await ones.be_alone()
            await fours.be_alone()
            for n in numbers:
                with _counting_retries() as retried:
                    rates[n].append(await slow.rate(n, seconds))
                refusals[n].append(retried.count / seconds)
    one, four = (statistics.median(callers.model_seconds) for callers in (ones, fours))
    sequence_seconds = max(four - one, 0.0) / (BATCH_SEQUENCES - 1)
    simulated = _service_of(
        request_seconds=statistics.median(busy),
        delay_seconds=max(statistics.median(alone) - statistics.median(busy), 0.0),
        batch_seconds=one - sequence_seconds,
        sequence_seconds=sequence_seconds,
    )
    points, ratios = [], []
    for n in numbers:
        # As it was measured: from an idle service on, of which the first fifth does not count.
        outcomes = [
            simulate_callers(
                simulated,
                n,
                seconds=0.8 * seconds,
                warm_up=0.2 * seconds,
                seed=seed,
                max_attempts=CLIENT_ATTEMPTS,
            )
            for seed in range(SEEDS)
        ]
        foretold = statistics.mean(outcome.questions_s for outcome in outcomes)
        refused = statistics.mean(outcome.refused for outcome in outcomes) / seconds
        measured = statistics.median(rates[n])
        ratios.append(foretold / measured)
        points.append(Point("real service, requests", "N", n, measured, foretold, "requests/s", "apart"))
        if n > QUEUE_SEQUENCES:
            seen = statistics.median(refusals[n])
            points.append(Point("real service, refusals", "N", n, seen, refused, "refusals/s", "apart"))
    return points, statistics.median(ratios)


class _Retries(logging.Handler):
    """Counts what the client says of each attempt that was refused, and says it to nobody else."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count it."""
        del record
        self.count += 1


@contextmanager
def _counting_retries() -> Iterator[_Retries]:
    logger, handler = logging.getLogger("stillhouse.client"), _Retries()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
