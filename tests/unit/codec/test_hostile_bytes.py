"""Bytes that are not whole payloads never become one."""

from __future__ import annotations

import contextlib
import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.codec import decode_payload, encode_payload
from stillhouse.errors import CodecError
from stillhouse.payload_header import HEADER_BYTES
from stillhouse.payloads import DenseLogits, HiddenStates, Payload, SampledCounts
from stillhouse.sampled_bits import unpack_ids
from tests.unit.codec.examples import EXAMPLES
from tests.unit.codec.forging import forge


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_truncation_and_every_flipped_bit_is_refused(name: str) -> None:
    data = encode_payload(EXAMPLES[name])
    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode_payload(data[:length])
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            decode_payload(altered)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("dense", {"magic": 0x04034B50}, "starts with"),
        ("dense", {"version": 1}, "not known here"),
        ("dense", {"version": 3}, "update Stillhouse"),
        ("dense", {"kind": 0}, "not known"),
        ("dense", {"kind": 8}, "not known"),
        ("dense", {"value_type": 4}, "not known"),
        ("dense", {"value_type": 0}, "cannot hold"),
        ("hidden", {"value_type": 2}, "cannot hold"),
        ("dense", {"total": 61}, "truncated"),
        ("dense", {"total": 59}, "after its end"),
        ("dense", {"rows": 2**60}, "describes"),
        ("dense", {"rows": 2**64 - 1, "width": 2**31}, "describes"),
        ("dense", {"rows": 0}, "describes"),
        ("dense", {"width": 0}, "width"),
        ("dense", {"width": 2**32 - 1}, "width"),
        ("dense", {"count": 1}, "neither"),
        ("dense", {"temperature": 1.0}, "neither"),
        ("dense", {"reserved": 1}, "reserved byte"),
        ("sampled", {"reserved": 255}, "reserved byte"),
        ("sampled", {"rows": 2**60}, "describes"),
        ("sampled", {"count": 2**31 - 1}, "describes"),
        ("sampled", {"count": 0}, "count"),
        ("sampled", {"width": 8}, "ids are coded"),
        ("sampled", {"width": 1}, "describes|distinct"),
        ("top_k", {"count": 11}, "count"),
        ("top_k", {"count": 2**31, "rows": 2**62}, "count"),
        ("top_k", {"width": 7}, "token_ids"),
        ("top_k", {"temperature": float("nan")}, "temperature"),
        ("top_k", {"temperature": 0.0}, "temperature"),
        ("top_k", {"temperature": -1.0}, "temperature"),
        ("candidates", {"temperature": float("inf")}, "temperature"),
        ("candidates", {"width": 9}, "token_ids"),
        ("candidates", {"width": 1}, "count"),
    ],
)
def test_a_header_that_lies_is_refused_even_with_a_true_checksum(
    name: str, fields: dict[str, int | float], message: str
) -> None:
    with pytest.raises(CodecError, match=message):
        decode_payload(forge(encode_payload(EXAMPLES[name]), **fields))


def test_no_two_runs_of_bits_mean_the_same_draws() -> None:
    data = bytearray(encode_payload(EXAMPLES["sampled"]))
    meanings = set()
    places = range(8 * (HEADER_BYTES + 8), 8 * len(data))
    for bits in [(), *combinations(places, 1), *combinations(places, 2)]:
        altered = data.copy()
        for bit in bits:
            altered[bit // 8] ^= 0x80 >> bit % 8
        with contextlib.suppress(CodecError):
            payload = decode_payload(forge(altered))
            assert isinstance(payload, SampledCounts)
            meaning = (*payload.offsets.tolist(), *payload.token_ids.tolist(), *payload.counts.tolist())
            assert meaning not in meanings
            meanings.add(meaning)
    assert len(meanings) > 10


def test_a_row_cannot_hold_more_ids_than_there_are() -> None:
    with pytest.raises(CodecError, match="a row has 3 distinct ids, where there are only 2"):
        unpack_ids(np.zeros(0, dtype=np.uint8), np.array([0, 1, 4]), width=2)


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(CodecError, match="after its end"):
        decode_payload(encode_payload(EXAMPLES["dense"]) + b"\0")


def replace(name: str, **changes: object) -> Payload:
    return dataclasses.replace(EXAMPLES[name], **changes)  # type: ignore[arg-type]  # any field of any kind


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (DenseLogits(torch.zeros(2)), "logits"),
        (DenseLogits(torch.zeros(2, 3, dtype=torch.float64)), "logits"),
        (HiddenStates(torch.zeros(2, 3, dtype=torch.float16)), "float16"),
        (replace("top_k", token_ids=ints(7, 2)), "token_ids"),
        (replace("top_k", token_ids=torch.tensor([[7, 2]])), "token_ids"),
        (replace("top_k", token_ids=ints(7, 10)[None]), "below N"),
        (replace("top_k", token_ids=ints(-1, 2)[None]), "below N"),
        (replace("top_k", log_tail_mass=torch.zeros(2)), "log_tail_mass"),
        (replace("top_k", vocabulary_size=1), "count"),
        (replace("candidates", token_ids=ints(9, 0)), "increasing"),
        (replace("sampled", offsets=torch.tensor([0, 3, 2])), "offsets"),
        (replace("sampled", offsets=torch.tensor([1, 2, 3])), "offsets"),
        (replace("sampled", offsets=torch.tensor([0, 0, 3])), "offsets"),
        (replace("sampled", token_ids=ints(8, 1, 4)), "increasing"),
        (replace("sampled", counts=ints(3, 2, 4)), "add up"),
        (replace("sampled", counts=ints(4, 0, 4)), "at least 1"),
        (replace("sampled", draws=5), "add up"),
    ],
)
def test_a_payload_that_contradicts_itself_gets_no_bytes(payload: Payload, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        encode_payload(payload)
