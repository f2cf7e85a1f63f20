"""A whole answer out of a stream of bytes: the message that was written, or an error, however it comes."""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.answer_messages import RawAnswer, read_answer, write_answer
from stillhouse.answer_reading import receive_answer
from stillhouse.errors import CodecError, StreamError
from stillhouse.payload_header import Header, Kind
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

TIMING = pb.Timing(queue_seconds=1, compute_seconds=2, encode_seconds=3)


class Bytes:
    """A source of bytes, of known length or not."""

    def __init__(self, data: bytes, *, knows_length: bool = True) -> None:
        self._data = data
        self._at = 0
        self.num_bytes = len(data) if knows_length else None

    def read(self, most_bytes: int, /) -> bytearray:
        data = self._data[self._at : self._at + most_bytes]
        self._at += len(data)
        return bytearray(data)

    def fill(self, views: SequenceOf[memoryview], /) -> None:
        for view in views:
            data = self.read(len(view))
            if len(data) < len(view):
                raise ConnectionResetError("it ends early")
            view[:] = data


def dense(rows: int, width: int) -> Header:
    return Header(Kind.DENSE, "float32", rows, width)


def sampled(rows: int, draws: int) -> Header:
    return Header(Kind.SAMPLED, None, rows, 1000, draws, 1.0)


def answer_to(headers: SequenceOf[Header], generator: random.Random) -> RawAnswer:
    sizes = [generator.randint(*header.size_bounds()) for header in headers]
    return RawAnswer([generator.randbytes(size) for size in sizes], "ab" * 16, TIMING, 2)


def same(one: RawAnswer, other: RawAnswer) -> bool:
    said = [(b"".join(map(bytes, a.payloads)), list(map(len, a.payloads)), a.fingerprint, a.timing, a.cache_hits)
            for a in (one, other)]  # fmt: skip
    return said[0] == said[1]


@given(
    st.lists(st.builds(dense, st.integers(1, 40), st.integers(1, 900)), max_size=5)
    | st.lists(st.builds(sampled, st.integers(1, 40), st.integers(1, 60)), max_size=5),
    st.integers(0, 2**32),
    st.booleans(),
)
@settings(deadline=None)
def test_it_is_the_message_that_was_written(headers: list[Header], seed: int, knows_length: bool) -> None:
    answer = answer_to(headers, random.Random(seed))
    source = Bytes(write_answer(answer), knows_length=knows_length)
    assert same(receive_answer(source, headers), answer)


LARGE = [dense(40, 900), dense(3, 900)]


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_of_damage_outside_of_payloads_nothing_comes_that_protobuf_would_not_read(seed: int) -> None:
    generator = random.Random(seed)
    answer = answer_to(LARGE, generator)
    data = bytearray(write_answer(answer))
    outside = [
        *range(4),
        *range(4 + len(answer.payloads[0]), 8 + len(answer.payloads[0])),
        *range(len(data) - 60, len(data)),
    ]
    data[generator.choice(outside)] ^= 1 << generator.randrange(8)
    try:
        expected = read_answer(bytes(data))
    except DecodeError:
        with pytest.raises((CodecError, ConnectionResetError)):
            receive_answer(Bytes(bytes(data)), LARGE)
        return
    assert same(receive_answer(Bytes(bytes(data)), LARGE), expected)


def test_payloads_have_memory_of_their_own_that_may_be_written_to() -> None:
    answer = receive_answer(Bytes(write_answer(answer_to(LARGE, random.Random(0)))), LARGE)
    for payload in answer.payloads:
        assert isinstance(payload, memoryview)
        assert not payload.readonly
        assert payload.obj is not answer.payloads[0].obj or payload is answer.payloads[0]  # type: ignore[union-attr]  # views


@pytest.mark.parametrize("headers", [[dense(3, 900)], LARGE, [sampled(4, 50)]])
def test_more_than_can_be_the_answer_is_not_read(headers: list[Header]) -> None:
    data = write_answer(answer_to(headers, random.Random(0)))
    too_much = data + b"\x12\x80\x80\x04" + bytes(2**16)
    with pytest.raises(StreamError, match=r"at most|the most"):
        receive_answer(Bytes(too_much + bytes(2**12)), headers)
    with pytest.raises(StreamError, match="the most that can be one"):
        receive_answer(
            Bytes(data + bytes(sum(h.size_bounds()[1] for h in headers) + 2**17), knows_length=False), headers
        )


@pytest.mark.parametrize("sent", [[dense(40, 901), dense(2, 900)], [dense(1, 900), dense(42, 900)], [dense(43, 900)]])
def test_payloads_of_other_sizes_are_read_for_whoever_decodes_them_to_refuse(sent: list[Header]) -> None:
    answer = answer_to(sent, random.Random(0))
    assert same(receive_answer(Bytes(write_answer(answer)), LARGE), answer)
