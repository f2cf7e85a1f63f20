"""Does a service that is asked three times what it can take keep answering as fast as it can?

A backend of fixed service time stands behind the real gRPC service, in a process of its own. First as many callers as
keep it busy wait for their answers (its peak); then requests arrive at three times that rate, whether or not the
earlier ones were answered. Every request must be answered or refused with a time to come again: nothing else.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import grpc

from benchmarks._result import Result, Value
from benchmarks._slow_service import slow_service
from stillhouse.encodings import TopK
from stillhouse.messages import request_to_proto
from stillhouse.request import LogitsRequest, Sequence
from stillhouse.status import PUSHBACK_TRAILER
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc

VOCABULARY = 1024
SEQUENCE_TOKENS = 32
BATCH_SEQUENCES = 4
BATCH_SECONDS = 0.05
"""So the service can take 80 requests a second, which leaves the machine idle: what is lost is lost in waiting."""

QUEUE_SEQUENCES = 16
OVERLOAD = 3.0
CALLERS_AT_PEAK = 12

# The answer of a request that waits through the whole queue takes 0.25 s; more than this is a lost request.
_DEADLINE_SECONDS = 10.0


@dataclass(slots=True)
class _Load:
    """What became of the requests of one phase."""

    answered_at: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def throughput(self, start: float, end: float) -> float:
        return sum(start <= moment < end for moment in self.answered_at) / (end - start)


class _Callers:
    """Sends requests, no two of them alike, and notes how each ends."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = pb_grpc.TeacherServiceStub(channel)
        self._numbers = count()

    async def ask(self, load: _Load) -> None:
        number = next(self._numbers)
        ids = (number % VOCABULARY, number // VOCABULARY % VOCABULARY, *range(SEQUENCE_TOKENS - 2))
        message = pb.ComputeLogitsRequest(request=request_to_proto(LogitsRequest((Sequence(ids),), TopK(8))))
        started = time.monotonic()
        call: Any = self._stub.ComputeLogits(message, timeout=_DEADLINE_SECONDS)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            trailers: Any = error.trailing_metadata() or ()
            pause = dict(trailers).get(PUSHBACK_TRAILER)
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and pause is not None:
                load.pauses.append(int(pause) / 1000)
            else:
                load.others[error.code().name] += 1
            return
        load.answered_at.append(time.monotonic())
        load.seconds.append(load.answered_at[-1] - started)

    async def keep_busy(self, seconds: float) -> tuple[_Load, float]:
        """Return the load of callers who each ask again when they have been answered, and its throughput."""
        load, start = _Load(), time.monotonic()
        end = start + seconds

        async def caller() -> None:
            while time.monotonic() < end:
                await self.ask(load)

        await asyncio.gather(*(caller() for _ in range(CALLERS_AT_PEAK)))
        # The first batches find an empty queue, and the last leave one.
        return load, load.throughput(start + 0.2 * seconds, start + 0.9 * seconds)

    async def overload(self, rate: float, seconds: float) -> tuple[_Load, float]:
        """Return the load of requests that arrive at a rate, in 1/s, and its throughput."""
        load, start = _Load(), time.monotonic()
        async with asyncio.TaskGroup() as asked:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(start + number / rate - time.monotonic())
                asked.create_task(self.ask(load))
        return load, load.throughput(start + 0.2 * seconds, start + 0.9 * seconds)


def measure(quick: bool) -> Result:
    """Measure the peak, then the throughput under three times that load.

    Figures: `throughput_kept`, overload's throughput over the peak; `shed_with_pushback`, of all refused requests.
    """
    rounds, seconds = (1, 3.0) if quick else (3, 5.0)
    bounds = {
        "max_batch_tokens": BATCH_SEQUENCES * SEQUENCE_TOKENS,
        "max_queue_sequences": QUEUE_SEQUENCES,
        "max_sequences": QUEUE_SEQUENCES,
    }
    with slow_service(BATCH_SECONDS, VOCABULARY, bounds) as address:
        table = asyncio.run(_measure(address, rounds, seconds))
    kept = statistics.median(float(row["overload_per_s"] or 0) / float(row["peak_per_s"] or 1) for row in table)
    lost = sum(int(row["lost"] or 0) for row in table)
    shed = sum(int(row["shed"] or 0) for row in table)
    assert kept >= 0.9, table
    assert lost == 0, table
    assert shed > 0, table
    return Result("overload", rounds, table, {"throughput_kept": kept, "shed_with_pushback": shed / (shed + lost)})


async def _measure(address: str, rounds: int, seconds: float) -> list[dict[str, Value]]:
    table: list[dict[str, Value]] = []
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        callers = _Callers(channel)
        await callers.keep_busy(0.5)
        for _ in range(rounds):
            busy, peak = await callers.keep_busy(seconds)
            flood, throughput = await callers.overload(OVERLOAD * peak, seconds)
            quantiles = statistics.quantiles(flood.seconds, n=100)
            table.append(
                {
                    "peak_per_s": round(peak, 2),
                    "asked_per_s": round(OVERLOAD * peak, 1),
                    "overload_per_s": round(throughput, 2),
                    "kept": round(throughput / peak, 4),
                    "shed": len(flood.pauses),
                    "lost": sum((flood.others + busy.others).values()),
                    "p50_ms": round(1000 * statistics.median(flood.seconds), 1),
                    "p99_ms": round(1000 * quantiles[98], 1),
                    "pause_ms": round(1000 * statistics.median(flood.pauses), 1),
                }
            )
    return table
