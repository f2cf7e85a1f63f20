"""Curves of the real service: requests a second over clients, and the time of an answer over its bytes and sequences.

The service is a process of its own with the fixture for a model, which sleeps as a GPU would compute or does nothing;
the clients are the real ones, in this process. Every answer is compared with what the fixture prefers.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count

from benchmarks._cost.model import answer_seconds, requests_s
from benchmarks._cost.point import Point
from benchmarks._real_service import real_service
from benchmarks._slow_service import slow_service
from stillhouse.async_client import AsyncTeacherClient
from stillhouse.encodings import Dense, TopK
from stillhouse.payloads import DenseLogits, TopKLogits
from stillhouse.request import All, LogitsRequest, Sequence

VOCABULARY = 2048
CLIENTS = (1, 2, 4, 8, 16, 32)
BATCH_SECONDS, BATCH_SEQUENCES, SEQUENCE_TOKENS = 0.03, 8, 32
ANSWER_ROWS = (1, 4, 16, 64, 256, 1024)
"""Dense answers of so many positions: 8 KiB to 8 MiB, from one message to a stream of eight chunks."""
SEQUENCES = (1, 2, 4, 8, 16, 32)
BOUNDS: dict[str, object] = {"cache": "off", "max_batch_tokens": BATCH_SEQUENCES * SEQUENCE_TOKENS}
TOGETHER_SECONDS = 0.03
"""How long a batch waits for company here, so that all who fit into one go together: by default callers that take
longer to come back than 5 ms take turns, which is for the simulation to foretell."""

# A crowd of 32 is down to one after so many batches, each of which remembers four fifths (`teacher_service.batching`).
_FORGETTING = 16


@dataclass(frozen=True, slots=True)
class Overheads:
    """What the service and its client take beside the model."""

    alone_seconds: float
    """From question to answer, of one small request alone."""
    request_seconds: float
    """For each of many small requests at once."""
    sequence_seconds: float
    """For each further sequence of a request."""
    full_batch_seconds: float
    """Of the model's thread, for a full batch, beside what it sleeps."""
    bytes_s: float
    """Of answers that are remembered, from question to tensors."""


class Callers:
    """So many callers of one service, who ask small questions, no two alike, each again once it is answered."""

    def __init__(self, client: AsyncTeacherClient, sequences: int = 1) -> None:
        self._client = client
        self._sequences = sequences
        self._numbers = count()
        self.model_seconds: list[float] = []
        """Of each request, what the model's thread took for the batches that it was in."""

    async def rate(self, callers: int, seconds: float) -> float:
        """Return the requests a second, of the middle of so many seconds."""
        start = time.monotonic()
        answered: list[float] = []

        async def caller() -> None:
            while time.monotonic() < start + seconds:
                await self.ask()
                answered.append(time.monotonic())

        await asyncio.gather(*(caller() for _ in range(callers)))
        # The first find nobody there, and the last leave nobody behind.
        first, last = start + 0.2 * seconds, start + seconds
        return sum(first <= moment < last for moment in answered) / (last - first)

    async def be_alone(self) -> None:
        """Ask until the service has forgotten how many asked at once, for as many of whom it would wait."""
        for _ in range(_FORGETTING):
            await self.ask()

    async def ask(self) -> None:
        """Ask one question, and see that its answer is the right one."""
        sequences = tuple(self._sequence() for _ in range(self._sequences))
        answer = await self._client.answer(LogitsRequest(sequences, TopK(8)))
        self.model_seconds.append(answer.compute_seconds + answer.encode_seconds)
        for sequence, payload in zip(sequences, answer.payloads, strict=True):
            assert isinstance(payload, TopKLogits)
            assert payload.token_ids[:, 0].tolist() == [sequence.token_ids[-1]]

    def _sequence(self) -> Sequence:
        number = next(self._numbers)
        ids = (number % VOCABULARY, number // VOCABULARY % VOCABULARY, *range(SEQUENCE_TOKENS - 3), number % 7)
        return Sequence(ids)


def request_points(quick: bool) -> tuple[list[Point], Overheads]:
    """Return the curves of the service."""
    with ExitStack() as stack:
        # A look-up that comes too late would be computed instead, which is not what is asked here.
        flags = ("--backend", "fixture", "--fixture-vocabulary-size", str(VOCABULARY), "--cache-timeout-seconds", "10")
        addresses = {
            "asleep": stack.enter_context(
                slow_service(BATCH_SECONDS, VOCABULARY, {**BOUNDS, "max_queue_delay_seconds": TOGETHER_SECONDS})
            ),
            "idle": stack.enter_context(slow_service(0.0, VOCABULARY, BOUNDS)),
            "remembers": stack.enter_context(real_service(*flags)).address,
        }
        return asyncio.run(_measure(addresses, quick))


async def _measure(addresses: Mapping[str, str], quick: bool) -> tuple[list[Point], Overheads]:
    rounds, warm_ups, seconds = (1, 0, 0.2) if quick else (2, 1, 1.0)
    clients = CLIENTS[:3] if quick else CLIENTS
    rates: dict[tuple[str, int], list[float]] = {}
    times: dict[tuple[str, int], list[float]] = {}
    batches: list[float] = []
    async with (
        AsyncTeacherClient(addresses["asleep"]) as asleep,
        AsyncTeacherClient(addresses["idle"]) as idle,
        AsyncTeacherClient(addresses["remembers"]) as remembers,
    ):
        callers = {"asleep": Callers(asleep), "idle": Callers(idle)}
        for number in range(warm_ups + rounds):
            for name, who in callers.items():
                if not quick:
                    await who.be_alone()
                for n in clients:
                    rates.setdefault((name, n), []).append(await who.rate(n, 0.2 if number < warm_ups else seconds))
            if not quick:
                await callers["idle"].be_alone()
            for rows in ANSWER_ROWS:
                times.setdefault(("rows", rows), []).append(await _answer_seconds(remembers, rows, quick))
            for sequences in SEQUENCES:
                many = Callers(idle, sequences)
                times.setdefault(("sequences", sequences), []).append(await _mean_seconds(many, 5 if quick else 40))
                batches += many.model_seconds if sequences == BATCH_SEQUENCES else []
    rate = {key: statistics.median(values[warm_ups:]) for key, values in rates.items()}
    least = {key: min(values[warm_ups:]) for key, values in times.items()}
    return _points(rate, least, statistics.median(batches), clients)


def _points(
    rate: Mapping[tuple[str, int], float],
    least: Mapping[tuple[str, int], float],
    full_batch_seconds: float,
    clients: tuple[int, ...],
) -> tuple[list[Point], Overheads]:
    few, many = SEQUENCES[0], SEQUENCES[-1]
    busiest = max(rate["idle", n] for n in clients)
    small, large = (least["rows", rows] for rows in (ANSWER_ROWS[0], ANSWER_ROWS[-1]))
    moved = _answer_bytes(ANSWER_ROWS[-1]) - _answer_bytes(ANSWER_ROWS[0])
    overheads = Overheads(
        alone_seconds=1 / rate["idle", 1],
        request_seconds=1 / busiest,
        sequence_seconds=(least["sequences", many] - least["sequences", few]) / (many - few),
        full_batch_seconds=full_batch_seconds,
        bytes_s=moved / (large - small),
    )
    return list(_all_points(rate, least, clients, overheads)), overheads


def _all_points(
    rate: Mapping[tuple[str, int], float],
    least: Mapping[tuple[str, int], float],
    clients: tuple[int, ...],
    overheads: Overheads,
) -> Iterator[Point]:
    for name, seconds in (("asleep", BATCH_SECONDS), ("idle", 0.0)):
        curve = f"requests, a model of {1e3 * seconds:g} ms a batch"
        for n in clients:
            foretold = requests_s(
                n,
                alone_seconds=seconds + overheads.alone_seconds,
                request_seconds=overheads.request_seconds,
                batch=BATCH_SEQUENCES,
                full_batch_seconds=seconds + overheads.full_batch_seconds,
            )
            is_fitted = n == 1 or rate[name, n] == max(rate[name, m] for m in clients)
            known = "apart" if seconds else "fitted" if is_fitted else "point"
            yield Point(curve, "N", n, rate[name, n], foretold, "requests/s", known)
    fixed = least["rows", ANSWER_ROWS[0]] - _answer_bytes(ANSWER_ROWS[0]) / overheads.bytes_s
    for rows in ANSWER_ROWS:
        num_bytes = _answer_bytes(rows)
        foretold = answer_seconds(num_bytes, request_seconds=fixed, bytes_s=overheads.bytes_s)
        known = "fitted" if rows in (ANSWER_ROWS[0], ANSWER_ROWS[-1]) else "point"
        yield Point("remembered answer", "bytes", num_bytes, 1e3 * least["rows", rows], 1e3 * foretold, "ms", known)
    for sequences in SEQUENCES:
        foretold = least["sequences", SEQUENCES[0]] + (sequences - 1) * overheads.sequence_seconds
        known = "fitted" if sequences in (SEQUENCES[0], SEQUENCES[-1]) else "point"
        measured = least["sequences", sequences]
        yield Point("small request", "sequences", sequences, 1e3 * measured, 1e3 * foretold, "ms", known)


def _answer_bytes(rows: int) -> int:
    return 4 * VOCABULARY * rows


async def _mean_seconds(callers: Callers, requests: int) -> float:
    began = time.perf_counter()
    for _ in range(requests):
        await callers.ask()
    return (time.perf_counter() - began) / requests


async def _answer_seconds(client: AsyncTeacherClient, rows: int, quick: bool) -> float:
    """Return the seconds of one answer that is remembered; the first question sees to that."""
    ids = tuple((7 * place + rows) % VOCABULARY for place in range(rows))
    request = LogitsRequest((Sequence(ids, positions=All()),), Dense("float32"))
    await client.answer(request)
    repeats = 3 if quick else 12
    began = time.perf_counter()
    for _ in range(repeats):
        answer = await client.answer(request)
    elapsed = time.perf_counter() - began
    assert answer.cache_hits == 1
    (payload,) = answer.payloads
    assert isinstance(payload, DenseLogits)
    assert payload.logits.argmax(1).tolist() == [*ids[1:], ids[-1]]
    return elapsed / repeats
