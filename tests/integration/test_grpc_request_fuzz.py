"""Mutated requests through gRPC: a documented status each, a service that lives, and memory that stays."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import grpc
import pytest

from stillhouse.client import AsyncTeacherClient
from stillhouse.codec import verify_payload
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import ERROR_BY_GRPC_CODE
from stillhouse.fixtures import FixtureTeacher
from stillhouse.messages import request_to_proto
from stillhouse.request import All, Explicit, From, Last, LogitsRequest, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service.service import TeacherService
from tests.integration.mutations import NUM_REQUESTS, MemoryWatch, mutated

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]


@pytest.fixture(params=[0, 2], ids=["one process", "two fronts"])
def serve_teacher(request: pytest.FixtureRequest, serve_teacher: ServeTeacher) -> ServeTeacher:
    """With and without front processes."""
    return partial(serve_teacher, front_processes=request.param)


SERVICE = "/stillhouse.teacher.v1.TeacherService"
METHODS = ("ComputeLogits", "ComputeLogits", "StreamLogits", "GetTeacher", "GetOutputHead", "NoSuchMethod")
DOCUMENTED = {"OK", *ERROR_BY_GRPC_CODE} - {"INTERNAL"}
ENCODINGS: tuple[Encoding, ...] = (Dense(), Hidden(), TopK(3), Sampled(9, 1), Candidates((1, 5)), Candidates())

NUMBERS = (0, 1, 2, 255, 256, 257, 4097, 65_536, 2**31 - 1, 2**31, 2**32 - 1)
TEMPERATURES = (0.0, -1.0, 1e-300, 1e300, 5e-324, math.nan, math.inf, -math.inf, 0.5)

MOST_GROWTH_BYTES = 400 * 2**20
AT_ONCE = 16


def right(rng: random.Random) -> pb.LogitsRequest:
    encoding = rng.choice(ENCODINGS)
    own = isinstance(encoding, Candidates) and not encoding.token_ids
    sequences = []
    for _ in range(rng.randint(0, 4)):
        ids = tuple(rng.randrange(256) for _ in range(rng.randint(1, 12)))
        positions = rng.choice((Last(), All(), From(0), Explicit((0,))))
        asked = Sequence(ids, (), positions)
        rows = tuple((1, 7) for _ in range(asked.num_positions)) if own else ()
        sequences.append(Sequence(ids, (), positions, rows))
    return request_to_proto(LogitsRequest(tuple(sequences), encoding, temperature=rng.choice((1.0, 2.0))))


def wrong_field(message: pb.LogitsRequest, rng: random.Random) -> None:
    """Set one field to what it can hold and should not."""
    number, some = rng.choice(NUMBERS), rng.choices(NUMBERS, k=rng.randint(0, 9))
    sequence = rng.choice(message.sequences) if message.sequences else message.sequences.add()
    candidates = pb.CandidatesEncoding(token_ids=some)
    changes: tuple[Callable[[], object], ...] = (
        lambda: setattr(message, "temperature", rng.choice(TEMPERATURES)),
        lambda: setattr(message, "vocabulary_size", number),
        lambda: setattr(message, "expected_fingerprint", rng.choice(("x", "\U0001f600" * 3000))),
        lambda: message.top_k.CopyFrom(pb.TopKEncoding(k=number)),
        lambda: message.sampled.CopyFrom(pb.SampledEncoding(draws=number, seed=2**64 - 1)),
        lambda: message.candidates.CopyFrom(candidates),
        lambda: message.sequences.extend([sequence] * rng.choice((1, 300, 1100))),
        lambda: sequence.candidate_ids.extend(some),
        lambda: sequence.segment_lengths.extend(some),
        lambda: sequence.explicit.indices.extend(some),
        lambda: sequence.token_ids.extend([number] * rng.choice((1, 9000))),
        lambda: setattr(sequence.from_position, "start", number),
    )
    rng.choice(changes)()


def request_bytes(rng: random.Random) -> bytes:
    message = right(rng)
    if rng.random() < 0.6:
        wrong_field(message, rng)
    data = pb.ComputeLogitsRequest(request=message).SerializeToString()
    return mutated(data, rng) if rng.random() < 0.6 else data


async def ask(channel: grpc.aio.Channel, method: str, data: bytes) -> str:
    """Return the name of the status; whatever is answered with OK is a whole answer."""
    path = f"{SERVICE}/{method}"
    try:
        if method in ("StreamLogits", "GetOutputHead"):
            parts = [part async for part in channel.unary_stream(path, None, None)(data, timeout=60)]
            assert method == "GetOutputHead" or pb.StreamLogitsResponse.FromString(parts[-1]).HasField("trailer")
        else:
            answer = await channel.unary_unary(path, None, None)(data, timeout=60)
            if method == "ComputeLogits":
                for payload in pb.ComputeLogitsResponse.FromString(answer).payloads:
                    verify_payload(payload)
    except grpc.aio.AioRpcError as error:
        # What is told of an unforeseen fault would be INTERNAL, which is no documented answer to any request.
        return error.code().name
    return "OK"


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_mutated_requests_get_documented_statuses_alone(serve_teacher: ServeTeacher) -> None:
    rng = random.Random(20)
    watch = MemoryWatch()
    seen: Counter[str] = Counter()
    async with serve_teacher() as service, grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        for _ in range(NUM_REQUESTS // AT_ONCE):
            asked = [(rng.choice(METHODS), request_bytes(rng)) for _ in range(AT_ONCE)]
            codes = await asyncio.gather(*(ask(channel, method, data) for method, data in asked))
            for code, (method, data) in zip(codes, asked, strict=True):
                assert code in DOCUMENTED, (code, method, data[:2000])
            seen.update(codes)
            watch.look()
        assert {"OK", "INVALID_ARGUMENT", "OUT_OF_RANGE", "UNIMPLEMENTED"} <= set(seen), seen
        assert watch.growth < MOST_GROWTH_BYTES
        request = LogitsRequest((Sequence((3, 1, 4), (), All()),))
        async with AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client:
            assert str((await client.answer(request)).payloads) == str(FixtureTeacher(256).answer(request).payloads)
