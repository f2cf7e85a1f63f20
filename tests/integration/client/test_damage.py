"""Answers damaged on their way: asked for again, or an error, and never another tensor."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from stillhouse.client import TeacherClient
from stillhouse.codec import encode_payload
from stillhouse.encodings import Candidates, Dense, Encoding, TopK
from stillhouse.errors import CodecError, StillhouseError
from stillhouse.providers import Answer
from tests.integration.client.table_teacher import LARGE, SMALL, TABLE, Ask, TableServicer, about
from tests.integration.client.wire import altering

COUNT = float(os.environ.get("STILLHOUSE_TEST_COUNT", "1"))
ROWS = [(1, 2, 3), (7, 8, 9), (4,)]
ENCODINGS: list[Encoding] = [Dense(), Dense("bfloat16"), TopK(5), Candidates((0, 7, 9))]


def as_bytes(answer: Answer) -> list[bytes]:
    return list(map(encode_payload, answer.payloads))


@pytest.mark.parametrize("large", [False, True])
def test_what_came_damaged_is_asked_for_again(ask: Ask, servicer: TableServicer, large: bool) -> None:
    request = LARGE if large else SMALL
    whole = as_bytes(ask(request))
    servicer.calls.clear()
    left = 2

    def damage(payloads: list[bytes]) -> list[bytes]:
        nonlocal left
        left -= 1
        return payloads if left < 0 else [payloads[0][:-1] + bytes([payloads[0][-1] ^ 1])]

    servicer.alter = damage
    assert as_bytes(ask(request)) == whole
    assert len(servicer.calls) == 1 + 3


def test_what_stays_damaged_is_asked_for_three_times(ask: Ask, servicer: TableServicer) -> None:
    servicer.alter = lambda payloads: [payload[:-1] for payload in payloads]
    with pytest.raises(CodecError, match="truncated"):
        ask(SMALL, max_attempts=50)
    assert servicer.calls == ["GetTeacher"] + ["ComputeLogits"] * 3


def flip(generator: random.Random, payloads: list[bytes]) -> list[bytes]:
    changed = [bytearray(payload) for payload in payloads]
    for _ in range(generator.randint(1, 4)):
        payload = generator.choice(changed)
        payload[generator.randrange(len(payload))] ^= 1 << generator.randrange(8)
    return list(map(bytes, changed))


def truncate(generator: random.Random, payloads: list[bytes]) -> list[bytes]:
    index = generator.randrange(len(payloads))
    return [*payloads[:index], payloads[index][: generator.randrange(len(payloads[index]))], *payloads[index + 1 :]]


def shuffle(generator: random.Random, payloads: list[bytes]) -> list[bytes]:
    """Move bytes within a payload, where every value stays one."""
    index = generator.randrange(len(payloads))
    payload = payloads[index]
    cut = generator.randrange(1, len(payload))
    return [*payloads[:index], payload[cut:] + payload[:cut], *payloads[index + 1 :]]


def swap_shapes(_: random.Random, payloads: list[bytes]) -> list[bytes]:
    """Give the answer about three tokens to the sequence of one."""
    return payloads[::-1]


@pytest.mark.parametrize("damage", [flip, truncate, shuffle, swap_shapes])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
def test_no_damage_to_a_payload_gets_through(
    servicer: TableServicer,
    address: str,
    encoding: Encoding,
    damage: Callable[[random.Random, list[bytes]], list[bytes]],
) -> None:
    generator = random.Random(0)
    request = about(*ROWS, encoding=encoding)
    with TeacherClient(address, max_attempts=1) as client:
        whole = as_bytes(client.answer(request))
        for _ in range(20):
            servicer.alter = lambda payloads: damage(generator, payloads)
            try:
                found = as_bytes(client.answer(request))
            except StillhouseError:
                continue
            assert found == whole, "what was damaged beyond recognition passed"


def flips_on_the_wire(address: str, servicer: TableServicer, rounds: int, seed: int) -> int:
    """Damage messages on the wire, or cut it in any place; return how often no answer came of it."""
    generator = random.Random(seed)
    armed = False

    def alter(data: bytes, in_messages: list[int]) -> bytes:
        nonlocal armed
        if not (armed and in_messages):
            return data
        armed = False
        if generator.random() < 0.2:
            return data[: generator.randrange(len(data))]
        changed = bytearray(data)
        changed[generator.choice(in_messages)] ^= 1 << generator.randrange(8)
        return bytes(changed)

    request = about(*ROWS)
    refused = 0
    with altering(address, alter) as wire:
        for _ in range(rounds):
            # Each on a connection of its own: one that lost its place among the frames stays lost.
            own = [("grpc.use_local_subchannel_pool", 1)]
            with TeacherClient(wire, max_attempts=4, timeout_seconds=1, channel_options=own) as client:
                client.describe()
                armed = True
                try:
                    answer = client.answer(request)
                except StillhouseError:
                    refused += 1
                    continue
                rows = [TABLE[list(ids)] for ids in ROWS]
                assert all(p.logits.equal(row) for p, row in zip(answer.payloads, rows, strict=True))  # type: ignore[union-attr]  # dense
    assert servicer.calls.count("ComputeLogits") >= rounds
    return refused


def test_a_wire_that_flips_bits_gives_no_wrong_tensor(address: str, servicer: TableServicer) -> None:
    assert flips_on_the_wire(address, servicer, rounds=25, seed=1) < 25


@pytest.mark.long
def test_a_wire_that_flips_bits_gives_no_wrong_tensor_in_many_rounds(address: str, servicer: TableServicer) -> None:
    rounds = max(25, int(300 * COUNT))
    assert flips_on_the_wire(address, servicer, rounds, seed=2) < rounds
