"""Drives a load against a teacher: so many clients, each with a connection of its own, for a time or a count.

Closed loop: a client asks its next request when the last is answered, so that the teacher sets the pace. Open loop:
requests begin at random times of a given rate, whether or not earlier ones are answered, and their latency counts from
when they should have begun, so that a slow teacher cannot hide behind a patient client. Knows nothing of reports.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from stillhouse.async_client import AsyncTeacherClient
from stillhouse.bench.measure import Recorder
from stillhouse.bench.queue_size import QueueSampler
from stillhouse.bench.workload import Asked, Workload, WorkloadSettings
from stillhouse.errors import ConfigurationError, StillhouseError
from stillhouse.request import TeacherDescription

# Under open load this many requests are under way at most; more are counted as not sent.
MOST_IN_FLIGHT = 4096

# Whether there is a teacher at all is not worth waiting for long.
_DESCRIBE_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Load:
    """How hard, and how long. `rate` is requests a second, None for a closed loop; one of `seconds` and `requests`."""

    clients: int = 4
    seconds: float | None = None
    requests: int | None = None
    rate: float | None = None
    warmup_seconds: float = 1.0
    seed: int = 0
    verify: bool = False

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.requests is None):
            raise ConfigurationError("a load ends after seconds or after requests: give one of the two")
        for name in ("clients", "seconds", "requests", "rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigurationError(f"{name} must be above 0 and finite; got {value}")
        for name in ("warmup_seconds", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigurationError(f"{name} must be 0 or more; got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a load. `seconds` run from the first request to the last answer, `cpu_seconds` are the client's."""

    teacher: TeacherDescription
    encodings: tuple[str, ...]
    recorder: Recorder
    seconds: float
    cpu_seconds: float
    retries: dict[str, int]
    queue: dict[str, float]


async def drive(
    address: str,
    settings: WorkloadSettings,
    load: Load,
    *,
    client_options: dict[str, Any] | None = None,
    queue: QueueSampler | None = None,
    on_answer: Callable[[Recorder], None] = lambda _: None,
) -> Measured:
    """Put a teacher under load and return what was measured.

    Raises:
        ConfigurationError: settings that no load has.
        TeacherError: there is no teacher, it lets nobody in, or refuses requests of this kind altogether.
    """
    options = client_options or {}
    async with AsyncTeacherClient(address, **{**options, "max_attempts": _DESCRIBE_ATTEMPTS}) as first:
        teacher = await first.describe()
    workload = Workload(settings, teacher, load.seed)
    async with AsyncExitStack() as stack:
        # Clients of one process share a connection, unless each keeps to its own.
        own = [("grpc.use_local_subchannel_pool", 1)]
        clients = [
            await stack.enter_async_context(AsyncTeacherClient(address, **options, channel_options=own))
            for _ in range(load.clients)
        ]
        for client in clients:
            await client.describe()
        await _warm_up(clients, settings, teacher, load)
        before = _retries(clients)
        if queue is not None:
            await stack.enter_async_context(queue.running())
        run = _Run(clients, workload, load, on_answer)
        cpu, started = time.process_time(), time.monotonic()
        await run.to_the_end()
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
        after = _retries(clients)
    return Measured(
        teacher=teacher,
        encodings=tuple(sorted(run.recorder.by_encoding)),
        recorder=run.recorder,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        retries={name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)},
        queue={} if queue is None else queue.summary(),
    )


class _Run:
    """One load under way."""

    def __init__(
        self,
        clients: Sequence[AsyncTeacherClient],
        workload: Workload,
        load: Load,
        on_answer: Callable[[Recorder], None] = lambda _: None,
    ) -> None:
        self.recorder = Recorder(verify=load.verify)
        self._clients = clients
        self._workload = workload
        self._load = load
        self._on_answer = on_answer
        self._begun = 0
        self._ends = float("inf") if load.seconds is None else time.monotonic() + load.seconds

    async def to_the_end(self) -> None:
        async with asyncio.TaskGroup() as group:
            if self._load.rate is None:
                for client in self._clients:
                    group.create_task(self._closed_loop(client))
            else:
                await self._open_loop(group, self._load.rate)

    def _next(self) -> Asked | None:
        over = time.monotonic() >= self._ends
        if over or (self._load.requests is not None and self._begun >= self._load.requests):
            return None
        self._begun += 1
        return self._workload.next()

    async def _closed_loop(self, client: AsyncTeacherClient) -> None:
        while (asked := self._next()) is not None:
            await self._ask(client, asked, time.monotonic())

    async def _open_loop(self, group: asyncio.TaskGroup, rate: float) -> None:
        arrivals = random.Random(self._load.seed)  # noqa: S311 - a load, no secret
        under_way = set[asyncio.Task[None]]()
        due = time.monotonic()
        while True:
            due += arrivals.expovariate(rate)
            if due >= self._ends:
                return
            # Also where it is late: the loop must let the answers in.
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            asked = self._next()
            if asked is None:
                return
            if len(under_way) >= MOST_IN_FLIGHT:
                self.recorder.not_sent += 1
                continue
            task = group.create_task(self._ask(self._clients[self._begun % len(self._clients)], asked, due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)

    async def _ask(self, client: AsyncTeacherClient, asked: Asked, began: float) -> None:
        try:
            answer = await client.answer(asked.request)
        except StillhouseError as error:
            self.recorder.failed(error)
        else:
            self.recorder.answered(asked, answer, time.monotonic() - began)
        self._on_answer(self.recorder)


async def _warm_up(
    clients: Sequence[AsyncTeacherClient], settings: WorkloadSettings, teacher: TeacherDescription, load: Load
) -> None:
    """Open the connections and let the teacher see every shape once; with other content than what is measured."""
    if not load.warmup_seconds:
        return
    other = Workload(settings, teacher, load.seed ^ (1 << 62))
    await _Run(clients, other, Load(clients=load.clients, seconds=load.warmup_seconds)).to_the_end()


def _retries(clients: Sequence[AsyncTeacherClient]) -> dict[str, int]:
    names = {name for client in clients for name in client.retries}
    return {name: sum(client.retries.get(name, 0) for client in clients) for name in sorted(names)}
