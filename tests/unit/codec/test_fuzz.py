"""Mutated bytes of every kind are refused, or mean what they say, and never take memory that they have no bytes for."""

from __future__ import annotations

import contextlib
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.codec import (
    decode_output_head,
    decode_payload,
    encode_output_head,
    encode_payload,
    header_of,
    verify_payload,
)
from stillhouse.errors import CodecError
from stillhouse.payload_header import HEADER_BYTES, Kind
from tests.unit.codec.examples import EXAMPLES, HEAD, random_payload
from tests.unit.codec.forging import forge, mutate


@contextlib.contextmanager
def at_most_more(num_bytes: int) -> Iterator[None]:
    """Refuse this process any more memory than that beyond what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def originals() -> list[bytes]:
    """Of every kind a payload that can be read at a glance, and a larger random one; and two output heads."""
    large = [
        random_payload(kind, "float32", rows=5, width=300, count=40, seed=kind)
        for kind in Kind
        if kind is not Kind.OUTPUT_HEAD
    ]
    heads = [b"".join(encode_output_head(HEAD, value_type)) for value_type in ("float32", "bfloat16")]
    return [encode_payload(payload) for payload in (*EXAMPLES.values(), *large)] + heads


def decode(data: bytes) -> None:
    """Decode what may be a payload or an output head; whatever comes of it is what its header says."""
    header = verify_payload(data)
    if header.kind is Kind.OUTPUT_HEAD:
        head = decode_output_head(data)
        assert (head.vocabulary_size, head.hidden_size) == (header.rows, header.width)
        value_type = header.value_type
        assert value_type is not None
        # Bit by bit, since the same numbers have the same bytes.
        assert b"".join(encode_output_head(head, value_type)) == data
    else:
        assert header_of(decode_payload(data)) == header


def fuzz(rounds: int, seed: int) -> int:
    """Return how many mutated payloads, their checksum mended, still meant something."""
    random_, sources, meant = random.Random(seed), originals(), 0
    for _ in range(rounds):
        data = random_.choice(sources)
        altered = mutate(data, random_)
        if altered != data:
            for read in (decode_payload, decode_output_head):
                with pytest.raises(CodecError):
                    read(altered)
        if len(altered) >= HEADER_BYTES:
            # With a true checksum the header is believed: then whatever decodes must be what it says.
            with contextlib.suppress(CodecError):
                decode(bytes(forge(altered)))
                meant += 1
    return meant


def test_mutated_bytes_are_refused_or_mean_what_they_say() -> None:
    with at_most_more(2**29):
        assert fuzz(3000, seed=1) > 100


@pytest.mark.long
def test_many_mutated_bytes_are_refused_or_mean_what_they_say() -> None:
    rounds = int(500_000 * float(os.environ.get("STILLHOUSE_TEST_COUNT", "1")))
    with at_most_more(2**29):
        assert fuzz(rounds, seed=2) > rounds // 50


def test_the_limit_on_memory_is_one() -> None:
    with at_most_more(2**29), pytest.raises(MemoryError):
        bytearray(2**30)
