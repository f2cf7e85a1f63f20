"""safetensors, written and read as a stream: no copy of the whole, whatever the size.

The bytes are the safetensors format (8 bytes of header length, a JSON header, the tensors' data one after the other),
so that any reader of it opens them. The library's own writer keeps everything in memory and refuses tensors that
share storage, as tied embeddings do. Knows nothing of files, sockets or checksums: it takes a sink or a source.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from stillhouse.errors import CodecError

HEADER_LIMIT_BYTES = 100_000_000
"""The limit that the safetensors library sets on a header."""

CHUNK_BYTES = 1 << 20
"""Data is handed on in chunks of this size, so that a stopped transfer stops soon."""

_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, object] = {}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise CodecError(f"tensor {name!r} is {tensor.dtype}, which safetensors cannot hold")
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return how many bytes `chunks_of` will yield."""
    return 8 + len(_header(tensors)) + sum(t.numel() * t.element_size() for t in tensors.values())


def chunks_of(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """Yield the safetensors bytes of named tensors; each is copied to the host alone, and CPU tensors not at all.

    Raises:
        CodecError: If a tensor has a dtype that the format lacks.
    """
    header = _header(tensors)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for tensor in tensors.values():
        data = _bytes_of(tensor.detach().cpu().contiguous())
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


def read_tensors(
    read_into: Callable[[memoryview], None], *, limit_bytes: int, room: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Read tensors from a source that fills the buffers it is handed, or raises.

    Args:
        read_into: fills the whole of a writable memoryview with the next bytes.
        limit_bytes: the most that header and tensors may take; checked before anything is allocated.
        room: contiguous tensors on the CPU, overwritten and returned where name, shape and dtype are those of what
            comes.

    Raises:
        CodecError: If the bytes are not safetensors, or announce more than the limit.
    """
    length_bytes = bytearray(8)
    read_into(memoryview(length_bytes))
    length = int.from_bytes(length_bytes, "little")
    if length > min(HEADER_LIMIT_BYTES, limit_bytes - 8):
        raise CodecError(f"the tensors' header announces {length} bytes; the limit is {limit_bytes}")
    header = bytearray(length)
    read_into(memoryview(header))
    tensors = {}
    for name, dtype, shape in _entries(bytes(header), limit_bytes - 8 - length):
        there = (room or {}).get(name)
        fits = there is not None and (there.dtype, list(there.shape)) == (dtype, shape)
        try:
            tensors[name] = there if there is not None and fits else torch.empty(shape, dtype=dtype)
        except (RuntimeError, TypeError) as error:
            raise CodecError(f"no tensor can have the shape {shape} of {name!r}: {error}") from error
        data = _bytes_of(tensors[name])
        for start in range(0, len(data), CHUNK_BYTES):
            read_into(data[start : start + CHUNK_BYTES])
    return tensors


def _entries(header: bytes, limit_bytes: int) -> list[tuple[str, torch.dtype, list[int]]]:
    """Return the named dtypes and shapes of a header whose data are dense, ordered and within the limit."""
    try:
        parsed = json.loads(header)
        parsed.pop("__metadata__", None)
        entries = [
            (str(name), _DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]], list(entry["data_offsets"]))
            for name, entry in parsed.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CodecError(f"the tensors' header is not safetensors: {error!r}") from error
    offset = 0
    for name, dtype, shape, offsets in entries:
        end = offset + math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or offsets != [offset, end]:
            raise CodecError(f"tensor {name!r} has offsets {offsets} where {[offset, end]} follow from its shape")
        offset = end
    if offset > limit_bytes:
        raise CodecError(f"the tensors take {offset} bytes; the limit is {limit_bytes}")
    return [(name, dtype, shape) for name, dtype, shape, _ in entries]


def _bytes_of(tensor: Tensor) -> memoryview:
    if sys.byteorder != "little":
        raise CodecError("safetensors are little-endian; this machine is not")
    return tensor.reshape(-1).view(torch.uint8).numpy().data
