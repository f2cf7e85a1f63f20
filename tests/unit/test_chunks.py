"""Payloads cross a stream whole, or not at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.chunks import Joiner, split
from stillhouse.errors import StreamError


def join(lengths: list[int], chunks: list[tuple[int, bytes]]) -> list[bytearray]:
    joiner = Joiner(lengths, max_bytes=10**6)
    for offset, data in chunks:
        joiner.add(offset, data)
    return joiner.finish()


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 50))
def test_what_is_split_is_joined(payloads: list[bytes], chunk_bytes: int) -> None:
    chunks = list(split(payloads, chunk_bytes))
    assert all(len(data) == chunk_bytes for _, data in chunks[:-1])
    assert join([len(payload) for payload in payloads], chunks) == payloads


@given(st.lists(st.binary(max_size=40), max_size=8), st.randoms(use_true_random=False))
def test_chunks_of_any_sizes_are_joined(payloads: list[bytes], random_: random.Random) -> None:
    whole = b"".join(payloads)
    chunks, start = [], 0
    while start < len(whole):
        end = random_.randint(start + 1, len(whole))
        chunks.append((start, whole[start:end]))
        start = end
    assert join([len(payload) for payload in payloads], chunks) == payloads


def test_each_payload_has_a_writable_buffer_of_its_own() -> None:
    first, second = join([3, 2], [(0, b"abcde")])
    first[0] = 0
    assert first == b"\0bc"
    assert second == b"de"


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([(1, b"bcde")], "missing"),
        ([(0, b"ab"), (3, b"de")], "missing"),
        ([(0, b"abc"), (2, b"cde")], "before"),
        ([(0, b"abc"), (0, b"abc")], "before"),
        ([(0, b"abc"), (3, b"def")], "announced; got 6"),
        ([(0, b"abcde"), (5, b"f")], "announced; got 6"),
        ([(0, b"abc"), (3, b"")], "empty"),
        ([(0, b"abc")], "ended after 3 of 5"),
        ([], "ended after 0 of 5"),
    ],
)
def test_a_stream_that_is_not_whole_and_in_order_is_refused(chunks: list[tuple[int, bytes]], message: str) -> None:
    with pytest.raises(StreamError, match=message):
        join([2, 3], chunks)


def test_more_than_can_be_the_answer_is_refused_before_a_byte_is_taken() -> None:
    with pytest.raises(StreamError, match="1152921504606846976 bytes were announced"):
        Joiner([2**60], max_bytes=2**30)


def test_no_memory_is_taken_for_bytes_that_never_come() -> None:
    joiner = Joiner([1, 2**50], max_bytes=2**51)
    joiner.add(0, b"a")
    with pytest.raises(StreamError, match="ended after 1"):
        joiner.finish()


def test_a_chunk_has_at_least_one_byte() -> None:
    with pytest.raises(ValueError, match="chunk_bytes must be at least 1; got 0"):
        list(split([b"a"], 0))
