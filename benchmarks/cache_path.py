"""How near does an answer from the cache, through the whole service, come to asking Redis itself for the same bytes?

A teacher without a model stands behind the real service, and every answer is in its Redis. Two contestants ask the
service, over HTTP and over gRPC, 16 sequences a request; the other asks the same Redis for the same 16 values in one
pipelined MGET, with the client library that the service has. All have as many requests in flight, from this process; a
message is read as Stillhouse's client reads it, and the bytes of every answer are compared.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc
from redis.asyncio import Redis

from benchmarks._real_service import RealService, real_service
from benchmarks._result import Result, Value
from stillhouse.answer_messages import RawAnswer, read_answer
from stillhouse.async_http_calls import AsyncHttpCalls
from stillhouse.cached_values import payload_in
from stillhouse.client import TeacherClient
from stillhouse.cutting import cut
from stillhouse.encodings import Dense, Encoding, Sampled, TopK
from stillhouse.exchange import COMPUTE_LOGITS
from stillhouse.fingerprint import cache_key
from stillhouse.messages import request_to_proto
from stillhouse.request import All, Last, LogitsRequest, Positions, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

VOCABULARY = 49_152
SEQUENCES = 16
IN_FLIGHT = 4
MAX_MESSAGE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked for; the first one of `SETTINGS` gives the headline figure."""

    name: str
    encoding: Encoding
    tokens: int
    positions: Positions


SETTINGS = (
    Setting("dense f32, 1 position each", Dense("float32"), 8, Last()),
    Setting("top-64, 128 positions each", TopK(64), 128, All()),
    Setting("sampled 50, 128 positions each", Sampled(50), 128, All()),
)


def measure(quick: bool) -> Result:
    """Measure every setting; `hit_mb_s_over_raw_mget` is the median of the first one's ratios by round, over HTTP."""
    rounds, requests = (2, 8) if quick else (9, 96)
    # A look-up that comes too late would be computed instead, which is not what is asked here.
    flags = ("--backend", "fixture", "--fixture-vocabulary-size", str(VOCABULARY), "--cache-timeout-seconds", "10")
    with real_service(*flags) as service:
        rows, ratios = [], []
        for setting in SETTINGS:
            setting_rows, setting_ratios = asyncio.run(_measure(service, setting, rounds, requests))
            rows += setting_rows
            ratios.append(statistics.median(setting_ratios))
    return Result("cache_path", rounds, rows, {"hit_mb_s_over_raw_mget": ratios[0]})


async def _measure(
    service: RealService, setting: Setting, rounds: int, requests: int
) -> tuple[list[dict[str, Value]], list[float]]:
    sequences = tuple(
        Sequence(
            tuple((7 * index + place) % VOCABULARY for place in range(setting.tokens)), positions=setting.positions
        )
        for index in range(SEQUENCES)
    )
    request = LogitsRequest(sequences, setting.encoding)
    with TeacherClient(service.address, timeout_seconds=120) as client:
        client.answer(request)  # so that every answer is remembered
        teacher = client.describe()
    keys = [
        cache_key(teacher.fingerprint, sequence, setting.encoding, temperature=1.0, vocabulary_size=VOCABULARY)
        for sequence in sequences
    ]
    (part,) = cut(request, teacher, max_answer_bytes=2**30, max_message_bytes=MAX_MESSAGE_BYTES)
    calls = AsyncHttpCalls(service.http_address, None)
    redis = Redis.from_url(service.redis_url, socket_read_size=2**20, protocol=2)
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    async with redis, grpc.aio.insecure_channel(service.address, options=options) as channel:
        compute: Any = channel.unary_unary(COMPUTE_LOGITS, pb.ComputeLogitsRequest.SerializeToString, read_answer)
        message = pb.ComputeLogitsRequest(request=request_to_proto(request))
        remembered = [
            payload_in(key, value) for key, value in zip(keys, cast("Any", await redis.mget(keys)), strict=True)
        ]
        assert all(remembered), "the service has not remembered its answer"
        # A bytearray on the left compares all bytes at once, where views are compared one by one.
        expected = list(map(bytearray, filter(None, remembered)))

        async def hit_grpc() -> None:
            check(await compute(message, timeout=60))

        async def hit_http() -> None:
            check(await calls.answer(part, seconds=60, metadata=()))

        def check(answer: RawAnswer) -> None:
            assert answer.cache_hits == SEQUENCES
            assert expected == answer.payloads

        async def raw() -> None:
            pipeline = redis.pipeline(transaction=False)
            pipeline.mget(keys)
            (values,) = await pipeline.execute()
            found: list[object] = [payload_in(key, value) for key, value in zip(keys, values, strict=True)]
            assert expected == found

        contestants = {"raw MGET": raw, "hit over HTTP": hit_http, "hit over gRPC": hit_grpc}
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds + 1):
            for name, ask in contestants.items():
                elapsed = await _all(ask, requests)
                if number:
                    seconds[name].append(elapsed)
        await calls.close()
    size = sum(map(len, expected))
    megabytes = {name: [size * requests / 1e6 / one for one in times] for name, times in seconds.items()}
    rows: list[dict[str, Value]] = [
        {
            "setting": setting.name,
            "contestant": name,
            "answer_kb": round(size / 1e3, 1),
            "mb_s_min": round(min(rates), 1),
            "mb_s_median": round(statistics.median(rates), 1),
            "mb_s_max": round(max(rates), 1),
            "answers_s_median": round(statistics.median(rates) * 1e6 / size, 1),
        }
        for name, rates in megabytes.items()
    ]
    raw_rates, hit_rates, _ = megabytes.values()
    return rows, [hit_rate / raw_rate for hit_rate, raw_rate in zip(hit_rates, raw_rates, strict=True)]


async def _all(ask: Callable[[], Awaitable[None]], requests: int) -> float:
    """Return the seconds that so many requests take, some of them in flight together."""
    left = iter(range(requests))

    async def caller() -> None:
        for _ in left:
            await ask()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return time.perf_counter() - began
