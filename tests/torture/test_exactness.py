"""Every (encoding x dtype x positions x segments x T x N) answer is the model's own, whichever way it comes.

Alone, among others, remembered, streamed, as JSON, as Arrow, and from a Redis that outlived the service.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from stillhouse.client import AsyncTeacherClient
from stillhouse.codec import decode_payload
from stillhouse.encode import encode_hidden, encode_logits
from stillhouse.encodings import Hidden
from stillhouse.payloads import CandidateLogits, DenseLogits, HiddenStates, Payload, TopKLogits
from stillhouse.request import All, LogitsRequest, Sequence
from tests.torture.doors import Bytes, GrpcDoor, ask_arrow, ask_json, grpc_door, same_bytes
from tests.torture.mix import COUNT, every_combination
from tests.torture.reference import VOCABULARY_SIZE, Reference
from tests.torture.service_process import RedisProcess, ServiceProcess, serving

AT_ONCE = 32

# Those of one (encoding, value type, kind of positions) that `every_combination` yields in a row.
COMBINATIONS_OF_ONE = 12


@dataclass
class Matrix:
    """Cases, and what has been answered to them."""

    cases: SequenceOf[LogitsRequest]
    reference: Reference
    is_deterministic: bool

    def check(self, answers: SequenceOf[Bytes], way: str) -> None:
        """Hold each answer to the model's own."""
        for case, answer in zip(self.cases, answers, strict=True):
            mistakes = self.reference.mistakes(case, [decode_payload(data) for data in answer.payloads])
            assert not mistakes, (way, mistakes)

    def same(self, answers: SequenceOf[Bytes], expected: SequenceOf[Bytes], way: str) -> None:
        """Hold each answer to the bytes of another."""
        for case, answer, other in zip(self.cases, answers, expected, strict=True):
            assert answer.payloads == other.payloads, (way, case)

    async def hold(self, service: ServiceProcess) -> list[Bytes]:
        """Ask in every way; return what the cache remembers now."""
        async with grpc_door(service.grpc) as door, httpx.AsyncClient(base_url=service.http, timeout=60) as http:
            anew = [replace(case, cache_mode="bypass") for case in self.cases]
            alone = [await door.ask(case) for case in anew]
            self.check(alone, "alone")
            batched = await _at_once(door, anew)
            self.check(batched, "batched")
            streamed = [await door.stream(case) for case in anew]
            self.check(streamed, "streamed")
            if self.is_deterministic:
                self.same(batched, alone, "batched")
                self.same(streamed, alone, "streamed")
            stored = await _at_once(door, self.cases)
            self.check(stored, "stored")
            assert not any(answer.cache_hits for answer in stored)
            await self.hold_remembered(service, stored, door)
            for case, answer in zip(self.cases, stored, strict=True):
                for ask in (ask_json, ask_arrow):
                    payloads, hits = await ask(http, case)
                    assert hits == len(payloads)
                    assert same_bytes(payloads, answer), (ask, case)
        return stored

    async def hold_output_head(self, service: ServiceProcess) -> None:
        """Rebuild logits with the head that the service gives."""
        sequence = Sequence(tuple(range(40)), (), All())
        async with AsyncTeacherClient(service.grpc) as client:
            head = await client.output_head("float32")
            (payload,) = await client.logits([sequence.token_ids], encoding=Hidden("float32"))
        assert isinstance(payload, HiddenStates)
        difference = head.logits(payload.hidden).double() - self.reference.logits(sequence)
        assert float(difference.abs().max()) < max(1e-3, self.reference.tolerance)

    async def hold_remembered(self, service: ServiceProcess, stored: SequenceOf[Bytes], door: GrpcDoor) -> None:
        """Ask for what is remembered, in one message, as a stream, and through the client."""
        remembered = [await door.ask(case) for case in self.cases]
        self.same(remembered, stored, "remembered")
        self.same([await door.stream(case) for case in self.cases], stored, "remembered and streamed")
        assert all(answer.cache_hits == len(answer.payloads) for answer in remembered)
        async with AsyncTeacherClient(service.grpc) as client:
            for case, bytes_ in zip(self.cases, stored, strict=True):
                answer = await client.answer(case)
                assert answer.cache_hits == len(case.sequences)
                assert same_bytes(answer.payloads, bytes_)


async def _at_once(door: GrpcDoor, cases: SequenceOf[LogitsRequest]) -> list[Bytes]:
    answers: list[Bytes] = []
    for start in range(0, len(cases), AT_ONCE):
        answers += await asyncio.gather(*map(door.ask, cases[start : start + AT_ONCE]))
    return answers


def chosen(seed: int, share: float) -> list[LogitsRequest]:
    """Return some of the combinations, at least one of each (encoding, value type, kind of positions)."""
    cases, draw, size = every_combination(seed), random.Random(seed), COMBINATIONS_OF_ONE
    groups = [cases[start : start + size] for start in range(0, len(cases), size)]
    return [case for group in groups for case in draw.sample(group, max(1, round(share * size)))]


async def hold_across_a_restart(
    cases: SequenceOf[LogitsRequest], reference: Reference, redis: RedisProcess, tmp_path: Path, mode: str
) -> None:
    matrix = Matrix(cases, reference, is_deterministic=mode == "deterministic")
    flags = ("--mode", mode, "--dtype", reference.compute_dtype, "--cache-timeout-seconds", "2")
    with serving(tmp_path / "first", reference.folder, *flags, redis_url=redis.url) as service:
        await matrix.hold_output_head(service)
        stored = await matrix.hold(service)
    with serving(tmp_path / "second", reference.folder, *flags, redis_url=redis.url) as service:
        async with grpc_door(service.grpc) as door:
            await matrix.hold_remembered(service, stored, door)
            anew = [await door.ask(replace(case, cache_mode="refresh")) for case in cases]
            matrix.check(anew, "restarted")
            if matrix.is_deterministic:
                matrix.same(anew, stored, "restarted")
        assert service.metric("teacher_cache_requests_total", result="miss") == 0


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mode", "dtype", "share"),
    [
        ("deterministic", "float32", 1.0),
        pytest.param("throughput", "float32", 1.0, marks=pytest.mark.skipif(COUNT < 0.5, reason="at full counts")),
        ("throughput", "bfloat16", 0.5),
    ],
)
async def test_every_answer_is_the_models_own_whichever_way_it_comes(
    model: Path, redis: RedisProcess, tmp_path: Path, mode: str, dtype: str, share: float
) -> None:
    cases = chosen(1, share * min(1.0, COUNT))
    await hold_across_a_restart(cases, Reference(model, dtype), redis, tmp_path, mode)


async def test_an_answer_of_each_kind_is_the_models_own(
    reference: Reference, bounded: tuple[ServiceProcess, RedisProcess]
) -> None:
    matrix = Matrix(chosen(2, 0)[::2], reference, is_deterministic=True)
    await matrix.hold_output_head(bounded[0])
    await matrix.hold(bounded[0])


def test_the_reference_sees_what_is_wrong(reference: Reference) -> None:
    """It would be worth nothing if it took another sequence's answer, another temperature's, or one a little off."""
    for case in chosen(3, 0)[::4]:
        (sequence,) = case.sequences
        right = _made_of(reference, case, sequence)
        assert not reference.mistakes(case, [right])
        ids = tuple((token_id + 1) % VOCABULARY_SIZE for token_id in sequence.token_ids)
        assert reference.mistakes(case, [_made_of(reference, case, replace(sequence, token_ids=ids))])
        if isinstance(right, TopKLogits | CandidateLogits):
            other = replace(case, temperature=case.temperature * 1.1)
            assert reference.mistakes(case, [_made_of(reference, other, sequence)])
        if isinstance(right, DenseLogits):
            right.logits[-1, 7] += 0.02 * right.logits.abs().max()
            assert reference.mistakes(case, [right])


def _made_of(reference: Reference, case: LogitsRequest, sequence: Sequence) -> Payload:
    if isinstance(case.encoding, Hidden):
        return encode_hidden(reference.hidden(sequence).float(), case.encoding)
    return encode_logits(
        [reference.logits(sequence).float()],
        case.encoding,
        sequence=sequence,
        temperature=case.temperature,
        vocabulary_size=case.vocabulary_size or VOCABULARY_SIZE,
    )
