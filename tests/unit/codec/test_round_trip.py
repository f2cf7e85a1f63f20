"""Payloads survive their bytes."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from stillhouse.codec import Draft, decode_payload, encode_payload, header_of, verify_payload
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.payload_header import HEADER_BYTES, Header, Kind
from stillhouse.payloads import DenseLogits, Payload, SampledCounts
from tests.asked import every_position
from tests.unit.codec.examples import EXAMPLES, payloads

# Fields, checksum, body, as docs/payload-format.md lays them out.
GOLDEN = {
    "dense": (
        "5348504c020101003c00000000000000010000000000000003000000000000000000000000000000"
        "b7661e3f8cbe6679"
        "0000803f000000c00000003f"
    ),
    "hidden": (
        "5348504c020203003400000000000000010000000000000002000000000000000000000000000000911f9a6c128bb0c0803f00c0"
    ),
    "top_k": (
        "5348504c020302004c0000000000000001000000000000000a000000020000000000000000000040"
        "c5dfb49a77481a8a"
        "070000000200000000006040000000c000008040000080bf0042003c"
    ),
    "sampled": (
        "5348504c020400003b0000000000000002000000000000000a00000004000000000000000000f03f"
        "292002a73309d325"
        "0000c03f0000803e31f040"
    ),
    "candidates": (
        "5348504c02050100500000000000000001000000000000000a00000002000000000000000000e03f"
        "1c2a8502882c2c9a"
        "000000000900000000004040000000c000008040000080bf0000803f00000040"
    ),
    "position_candidates": (
        "5348504c02060200680000000000000002000000000000000a00000002000000000000000000e03f"
        "e1de9297f3618ce6"
        "00000000090000000300000004000000000040400000a040000000c0000040c0000080400000c040000080bf000080c0003c004000bc0038"
    ),
}


def assert_same_bits(actual: Payload, expected: Payload) -> None:
    assert type(actual) is type(expected)
    for field in dataclasses.fields(expected):
        a, b = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(b, Tensor):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), field.name
            if b.numel():
                assert a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8)), field.name
        else:
            assert a == b, field.name


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_of_the_format_stay_what_they_are(name: str) -> None:
    payload, golden = EXAMPLES[name], GOLDEN[name]
    assert encode_payload(payload).hex() == golden
    assert_same_bits(decode_payload(bytes.fromhex(golden)), payload)


@settings(deadline=None)
@given(payloads())
def test_every_payload_survives_its_bytes_bit_by_bit(payload: Payload) -> None:
    data = encode_payload(payload)
    assert_same_bits(decode_payload(data), payload)
    assert encode_payload(decode_payload(data)) == data
    least, most = header_of(payload).size_bounds()
    assert least <= len(data) <= most
    assert verify_payload(data) == header_of(payload)


@settings(deadline=None)
@given(payloads().filter(lambda payload: not isinstance(payload, SampledCounts)))
def test_a_draft_that_is_filled_has_the_bytes_of_its_payload(payload: Payload) -> None:
    draft = Draft.of(header_of(payload))
    for field in dataclasses.fields(payload):
        value = getattr(payload, field.name)
        if isinstance(value, Tensor):
            getattr(draft.payload, field.name).copy_(value)
    assert draft.seal() == encode_payload(payload)


def test_a_sealed_draft_can_be_read_only() -> None:
    assert Draft.of(Header(Kind.DENSE, "float32", 1, 3)).seal().readonly


def test_an_empty_tensor_that_came_from_an_array_has_bytes() -> None:
    empty = DenseLogits(torch.from_numpy(np.zeros((0, 3), dtype=np.float32)))
    assert decode_payload(encode_payload(empty)).num_positions == 0


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_tensors_need_not_be_contiguous(shape: tuple[int, int]) -> None:
    wide = torch.randn(shape[0], 7)[:, 2:5]
    assert_same_bits(decode_payload(encode_payload(DenseLogits(wide))), DenseLogits(wide.contiguous()))


def test_a_writable_buffer_is_shared_and_kept_alive() -> None:
    buffer = bytearray(encode_payload(DenseLogits(torch.tensor([[1.0, 2.0]]))))
    payload = decode_payload(buffer)
    assert isinstance(payload, DenseLogits)
    buffer[HEADER_BYTES : HEADER_BYTES + 4] = b"\0\0\0\x40"
    assert payload.logits.tolist() == [[2.0, 2.0]]


def test_a_read_only_buffer_is_copied_without_a_warning() -> None:
    data = encode_payload(DenseLogits(torch.tensor([[1.0, 2.0]])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        payload = decode_payload(data)
    assert isinstance(payload, DenseLogits)
    payload.logits.zero_()
    assert data == encode_payload(DenseLogits(torch.tensor([[1.0, 2.0]])))


def test_a_buffer_that_starts_anywhere_decodes() -> None:
    data = encode_payload(DenseLogits(torch.tensor([[1.0, 2.0]])))
    for shift in range(9):
        payload = decode_payload(memoryview(bytearray(b"x" * shift + data))[shift:])
        assert isinstance(payload, DenseLogits)
        assert payload.logits.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("encoding", "name", "temperature", "width"),
    [
        (Dense(), "dense", 7.0, 3),
        (Hidden(), "hidden", 7.0, 3),
        (TopK(2), "top_k", 2, 10),
        (Sampled(4), "sampled", 1.0, 10),
        (Candidates((0, 9)), "candidates", 0.5, 10),
        (Candidates((), "float16"), "position_candidates", 0.5, 10),
    ],
)
def test_the_expected_header_is_that_of_the_answer(
    encoding: Encoding, name: str, temperature: float, width: int
) -> None:
    payload = EXAMPLES[name]
    sequence = every_position(payload.num_positions)
    if name == "position_candidates":
        sequence = dataclasses.replace(sequence, candidate_ids=((0, 9), (3, 4)))
    expected = Header.expected(encoding, sequence, temperature=temperature, vocabulary_size=width, hidden_size=2)
    assert expected == header_of(payload)


def test_a_sample_of_fifty_draws_takes_at_most_forty_bytes_a_position() -> None:
    # Zipf's law over SmolLM2's vocabulary, shuffled, with as many distinct ids in 50 draws as the real teacher has.
    generator = torch.Generator().manual_seed(0)
    rows, width, draws = 256, 49152, 50
    weights = 1 / torch.arange(1, width + 1).double() ** 1.53
    offsets, ids, counts = [0], [], []
    for _ in range(rows):
        drawn = torch.randperm(width, generator=generator)[torch.multinomial(weights, draws, True, generator=generator)]
        row_ids, row_counts = torch.unique(drawn, return_counts=True)
        ids.append(row_ids.int())
        counts.append(row_counts.int())
        offsets.append(offsets[-1] + len(row_ids))
    payload = SampledCounts(
        torch.tensor(offsets), torch.cat(ids), torch.cat(counts), torch.zeros(rows), draws, 1.0, width
    )
    assert 16.5 < offsets[-1] / rows < 17.5
    assert len(encode_payload(payload)) / rows <= 40
