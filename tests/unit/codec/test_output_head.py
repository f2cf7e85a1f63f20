"""Output heads survive their bytes, and nothing else becomes one."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.codec import decode_output_head, decode_payload, encode_output_head, encode_payload, verify_payload
from stillhouse.encodings import ValueType
from stillhouse.errors import CodecError
from stillhouse.payload_header import HEADER_BYTES, Kind
from stillhouse.payloads import DenseLogits, OutputHead
from tests.unit.codec.examples import HEAD
from tests.unit.codec.forging import forge

# Header, checksum, scale and soft cap, weight, bias.
GOLDEN = (
    "5348504c020703005200000000000000030000000000000002000000010000000000000000000000"
    "b72e14a7071f0406"
    "000000000000e03f0000000000003e40"
    "803f00c0003f404080bf0000"
    "803e00bf0041"
)


def joined(head: OutputHead, value_type: ValueType = "float32") -> bytes:
    return b"".join(encode_output_head(head, value_type))


def assert_same(a: OutputHead, b: OutputHead) -> None:
    assert (a.scale, a.soft_cap) == (b.scale, b.soft_cap)
    assert a.weight.dtype == b.weight.dtype
    assert a.weight.equal(b.weight)
    assert (a.bias is None) == (b.bias is None)
    assert a.bias is None or b.bias is None or (a.bias.dtype == b.bias.dtype and a.bias.equal(b.bias))


def test_bytes_of_the_format_stay_what_they_are() -> None:
    assert joined(HEAD, "bfloat16").hex() == GOLDEN
    assert_same(decode_output_head(bytes.fromhex(GOLDEN)), HEAD)


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.floats(1e-3, 1e3),
    st.none() | st.floats(1e-3, 1e3),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_every_head_survives_its_bytes(
    rows: int, width: int, has_bias: bool, scale: float, soft_cap: float | None, dtype: torch.dtype
) -> None:
    head = OutputHead(
        torch.randn(rows, width).to(dtype), torch.randn(rows).to(dtype) if has_bias else None, scale, soft_cap
    )
    wide = dataclasses.replace(head, weight=head.weight.float(), bias=None if head.bias is None else head.bias.float())
    assert_same(decode_output_head(joined(head)), wide)
    narrow = decode_output_head(bytearray(joined(head, "bfloat16")))
    assert narrow.weight.equal(head.weight.to(torch.bfloat16))
    assert joined(narrow, "bfloat16") == joined(head, "bfloat16")
    assert len(joined(head)) == verify_payload(joined(head)).size_bounds()[0]


def test_a_contiguous_head_is_sent_and_received_without_a_copy() -> None:
    head = OutputHead(torch.randn(40, 5), torch.randn(40))
    buffers = encode_output_head(head, "float32")
    head.weight[3, 1] = 7.0  # the view sees it: the checksum no longer fits
    received = bytearray(b"".join(buffers))
    with pytest.raises(CodecError, match="checksum"):
        decode_output_head(received)
    received = bytearray(joined(head))
    decoded = decode_output_head(received)
    received[HEADER_BYTES + 16 : HEADER_BYTES + 20] = b"\0\0\0\x40"
    assert decoded.weight[0, 0] == 2.0


@pytest.mark.parametrize("form", ["transposed", "parameter", "rows of a wider table"])
def test_a_heads_weight_may_lie_in_any_layout(form: str) -> None:
    weight = torch.randn(6, 4)
    other: Tensor = {
        "transposed": weight.t().contiguous().t(),
        "parameter": torch.nn.Parameter(weight),
        "rows of a wider table": torch.cat([weight, weight], dim=1)[:, :4],
    }[form]
    assert joined(OutputHead(other)) == joined(OutputHead(weight))


class Shard(Tensor):
    """A tensor that is only a part of itself, as a distributed one is."""


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (OutputHead(torch.zeros(3)), r"weight must be \[V, D\]"),
        (OutputHead(torch.zeros(3, 2, 1)), r"weight must be \[V, D\]"),
        (OutputHead(torch.zeros(3, 2, dtype=torch.float64)), "float64"),
        (OutputHead(torch.zeros(3, 2), torch.zeros(2)), r"bias \[V\]"),
        (OutputHead(torch.zeros(3, 2), torch.zeros(3, 1)), r"bias \[V\]"),
        (OutputHead(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32)), "int32"),
        (OutputHead(torch.zeros(0, 2)), "rows from 1"),
        (OutputHead(torch.zeros(3, 0)), "width"),
        (OutputHead(torch.zeros(3, 2).as_subclass(Shard)), "whole tensor with values; got a Shard"),
        (OutputHead(torch.zeros(3, 2, device="meta")), "on meta"),
        (OutputHead(torch.tensor([[1.0, math.nan]])), "weight holds a NaN"),
        (OutputHead(torch.zeros(1, 2), torch.tensor([math.inf])), "bias holds a NaN or an infinity"),
        (OutputHead(torch.zeros(3, 2), scale=0.0), "scale must be finite and above 0; got 0"),
        (OutputHead(torch.zeros(3, 2), scale=math.nan), "scale"),
        (OutputHead(torch.zeros(3, 2), soft_cap=-1.0), "soft_cap"),
        (OutputHead(torch.zeros(3, 2), soft_cap=0.0), "soft_cap must be finite and above 0; got 0"),
    ],
)
def test_a_head_that_is_none_gets_no_bytes(head: OutputHead, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        encode_output_head(head, "float32")


def test_a_weight_that_bfloat16_cannot_hold_is_refused() -> None:
    with pytest.raises(CodecError, match=r"infinity as torch\.bfloat16"):
        encode_output_head(OutputHead(torch.full((1, 1), 3.4e38)), "bfloat16")


def test_a_head_travels_as_float32_or_bfloat16() -> None:
    with pytest.raises(CodecError, match="OUTPUT_HEAD payload cannot hold float16"):
        encode_output_head(HEAD, "float16")


def test_every_truncation_and_every_flipped_bit_is_refused() -> None:
    data = joined(HEAD, "bfloat16")
    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode_output_head(data[:length])
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            decode_output_head(altered)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 1}, "not known here"),
        ({"rows": 2**60}, "rows from 1"),
        ({"rows": 2**31, "width": 2**31}, "describes"),
        ({"rows": 0}, "rows from 1"),
        ({"width": 0}, "width"),
        ({"count": 2}, "neither"),
        ({"count": 0}, "describes"),
        ({"temperature": 1.0}, "neither"),
        ({"value_type": 2}, "cannot hold"),
        ({"value_type": 1}, "describes"),
        ({"reserved": 1}, "reserved byte"),
        ({"scale": 0.0}, "scale"),
        ({"scale": -1.0}, "scale"),
        ({"scale": math.inf}, "scale"),
        ({"soft_cap": -0.0}, "soft_cap"),
        ({"soft_cap": math.nan}, "soft_cap"),
        ({"first_weights": 0x7F80_7F80}, "weight holds"),
        ({"last_biases": 0x7FC0_0000}, "bias holds"),
    ],
)
def test_a_head_that_lies_is_refused_even_with_a_true_checksum(fields: dict[str, float], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        decode_output_head(forge(joined(HEAD, "bfloat16"), **fields))


def test_heads_and_payloads_are_not_taken_for_each_other() -> None:
    with pytest.raises(CodecError, match="decode_output_head reads it"):
        decode_payload(joined(HEAD))
    with pytest.raises(CodecError, match="an output head was expected; got a DENSE payload"):
        decode_output_head(encode_payload(DenseLogits(torch.zeros(2, 3))))
    assert verify_payload(joined(HEAD)).kind is Kind.OUTPUT_HEAD
