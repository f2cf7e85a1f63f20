"""Tensors written as a stream are safetensors, and hostile bytes are refused before memory is taken."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from stillhouse.errors import CodecError
from student_worker.tensor_stream import chunks_of, read_tensors, size_of

LIMIT = 1 << 20


def reader(data: bytes) -> Callable[[memoryview], None]:
    position = 0

    def read_into(target: memoryview) -> None:
        nonlocal position
        if position + len(target) > len(data):
            raise CodecError("truncated")
        target[:] = data[position : position + len(target)]
        position += len(target)

    return read_into


def sample_tensors() -> dict[str, Tensor]:
    tied = torch.randn(3, 4)
    return {
        "tied": tied,
        "tied.again": tied,
        "transposed": tied.t(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 7),
        "half": torch.randn(5).to(torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "steps": torch.tensor([1 << 40]),
        "näme": torch.tensor([-1], dtype=torch.int8),
    }


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_the_library_reads_what_is_streamed() -> None:
    data = b"".join(chunks_of(sample_tensors()))
    assert len(data) == size_of(sample_tensors())
    torch.manual_seed(0)
    streamed = sample_tensors()
    assert equal(load(b"".join(chunks_of(streamed))), streamed)


def test_the_stream_reads_what_the_library_writes() -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    assert equal(read_tensors(reader(save(tensors)), limit_bytes=LIMIT), tensors)


def test_tensors_come_back_as_they_were() -> None:
    tensors = sample_tensors()
    assert equal(read_tensors(reader(b"".join(chunks_of(tensors))), limit_bytes=LIMIT), tensors)


@pytest.mark.parametrize("cut", [0, 7, 9, -1])
def test_a_truncated_stream_is_refused(cut: int) -> None:
    data = b"".join(chunks_of(sample_tensors()))
    with pytest.raises(CodecError, match="truncated"):
        read_tensors(reader(data[:cut]), limit_bytes=LIMIT)


def framed(header: object) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((1 << 60).to_bytes(8, "little"), "the limit is"),
        (framed({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}), "the limit is"),
        (framed({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, -16]}}), "offsets"),
        (framed({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}), "offsets"),
        (framed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}), "offsets"),
        (framed({"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}), "not safetensors"),
        (framed({"a": {"dtype": "F32", "shape": [1 << 62, 8, 0], "data_offsets": [0, 0]}}), "no tensor can have"),
        (framed({"a": 3}), "not safetensors"),
        (framed([1]), "not safetensors"),
        ((4).to_bytes(8, "little") + b"{{{{", "not safetensors"),
    ],
)
def test_hostile_headers_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        read_tensors(reader(data + bytes(64)), limit_bytes=LIMIT)


@given(st.binary(max_size=200))
def test_any_bytes_are_tensors_or_refused(data: bytes) -> None:
    for candidate in (data, len(data).to_bytes(8, "little") + data):
        try:
            read_tensors(reader(candidate), limit_bytes=LIMIT)
        except CodecError:
            continue


def test_a_dtype_that_the_format_lacks_is_named() -> None:
    with pytest.raises(CodecError, match=r"'phase' is torch\.complex64"):
        list(chunks_of({"phase": torch.zeros(1, dtype=torch.complex64)}))
