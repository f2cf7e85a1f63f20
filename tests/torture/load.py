"""Many clients that ask a mix without pause, and compare every answer with the model's own.

Knows nothing of what is done to the service meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import islice

import httpx

from stillhouse.client import AsyncTeacherClient
from stillhouse.payloads import Payload
from stillhouse.request import LogitsRequest
from tests.torture.doors import ask_arrow, ask_json
from tests.torture.mix import mixed
from tests.torture.reference import Reference
from tests.torture.service_process import ServiceProcess, total
from tests.waiting import until

NUM_CLIENTS = 64
# Of them, those that ask over HTTP, half for JSON and half for Arrow.
NUM_HTTP_CLIENTS = 8

# Different requests. Half of them must be computed anew however often they are asked.
NUM_REQUESTS = 600

# A request is lost when its client gives up. This is how long a patient one tries: longer than any fault here keeps a
# service from answering, and less than the minute after which a stall of its own would end.
PATIENCE_SECONDS = 40.0
_MOST_ATTEMPTS = 1000

_SAMPLE_SECONDS = 0.1

# Unanswered, as a service that has shed load or lost its connection leaves it.
_TRY_AGAIN = (429, 503)


@dataclass
class Load:
    """What has come of the requests so far."""

    reference: Reference
    answered: int = 0
    in_flight: int = 0
    cache_hits: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    last_answer_at: float = field(default_factory=time.monotonic)
    _stopping: bool = False

    def stop(self) -> None:
        """Let each client end with the request that it is at."""
        self._stopping = True

    async def ask(self, requests: SequenceOf[LogitsRequest], draw: random.Random, ask: Ask) -> None:
        """Be one client."""
        while not self._stopping:
            request = draw.choice(requests)
            self.in_flight += 1
            try:
                payloads, hits = await ask(request)
            except Exception as error:  # noqa: BLE001 - whatever it is, the request is lost, and told
                self.lost.append(f"{type(error).__name__}: {error}")
            else:
                self.answered += 1
                self.cache_hits += hits
                self.last_answer_at = time.monotonic()
                self.wrong += self.reference.mistakes(request, payloads)
            finally:
                self.in_flight -= 1

    async def until_answered(self, more: int, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until so many more have been answered."""
        goal = self.answered + more
        await until(lambda: self.answered >= goal, seconds)

    def check(self) -> None:
        """See that nothing was wrong and nothing lost."""
        assert not self.wrong, (len(self.wrong), self.wrong[:3])
        assert not self.lost, (len(self.lost), self.lost[:3])
        assert self.in_flight == 0
        assert self.answered > 0


Ask = Callable[[LogitsRequest], Awaitable[tuple[SequenceOf[Payload], int]]]


@asynccontextmanager
async def load_on(
    address: str, reference: Reference, *, http: str | None = None, clients: int = NUM_CLIENTS, seed: int = 0
) -> AsyncIterator[Load]:
    """Load a teacher (or several: a gRPC target) while the context lasts; at its end nothing is in flight any more.

    With `http`, some of the clients ask there.
    """
    load = Load(reference)
    num_http = NUM_HTTP_CLIENTS if http is not None else 0
    async with AsyncExitStack() as stack:
        asks: list[Ask] = []
        for _ in range(clients - num_http):
            client = AsyncTeacherClient(address, timeout_seconds=PATIENCE_SECONDS, max_attempts=_MOST_ATTEMPTS)
            asks.append(_grpc_ask(await stack.enter_async_context(client)))
        if http is not None:
            limits = httpx.Limits(max_connections=num_http, max_keepalive_connections=num_http)
            session = httpx.AsyncClient(base_url=http, timeout=PATIENCE_SECONDS, limits=limits)
            await stack.enter_async_context(session)
            asks += [_http_ask(session, as_json=index % 2 == 0) for index in range(num_http)]
        requests = known_requests(reference)
        draws = [random.Random(f"{seed}, {n}") for n in range(clients)]
        tasks = [asyncio.create_task(load.ask(requests, draw, ask)) for draw, ask in zip(draws, asks, strict=True)]
        try:
            yield load
        finally:
            load.stop()
            await asyncio.gather(*tasks)


def known_requests(reference: Reference) -> list[LogitsRequest]:
    """Return a mix whose answers are worked out beforehand, so that the clients have time to ask."""
    requests = list(islice(mixed(1), NUM_REQUESTS))
    for sequence in {sequence for request in requests for sequence in request.sequences}:
        reference.logits(sequence)
    return requests


def _grpc_ask(client: AsyncTeacherClient) -> Ask:
    async def ask(request: LogitsRequest) -> tuple[SequenceOf[Payload], int]:
        answer = await client.answer(request)
        return answer.payloads, answer.cache_hits

    return ask


def _http_ask(session: httpx.AsyncClient, *, as_json: bool) -> Ask:
    async def ask(request: LogitsRequest) -> tuple[SequenceOf[Payload], int]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await (ask_json if as_json else ask_arrow)(session, request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in _TRY_AGAIN or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(float(error.response.headers.get("retry-after", "0.2")))
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)

    return ask


@dataclass
class Samples:
    """What a service showed from the outside while it was watched."""

    rss_bytes: list[int] = field(default_factory=list)
    queue_size: list[float] = field(default_factory=list)
    queue_tokens: list[float] = field(default_factory=list)
    requests_in_flight: list[float] = field(default_factory=list)
    held_bytes: list[float] = field(default_factory=list)

    def growth(self) -> float:
        """Return the peak memory of the second half over that of the first."""
        middle = len(self.rss_bytes) // 2
        return max(self.rss_bytes[middle:]) / max(self.rss_bytes[:middle])


@contextmanager
def watching(service: ServiceProcess) -> Iterator[Samples]:
    """Sample a service's memory and gauges while the context lasts, in a thread of its own."""
    samples, ending = Samples(), threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=service.http, timeout=30) as http:
            while not ending.is_set():
                text = http.get("/metrics").text
                samples.rss_bytes.append(service.rss_bytes())
                samples.queue_size.append(total(text, "teacher_queue_size"))
                samples.queue_tokens.append(total(text, "teacher_queue_tokens"))
                samples.requests_in_flight.append(total(text, "teacher_requests_in_flight"))
                samples.held_bytes.append(total(text, "teacher_held_bytes"))
                ending.wait(_SAMPLE_SECONDS)

    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(watch)
        try:
            yield samples
        finally:
            ending.set()
            watched.result()
