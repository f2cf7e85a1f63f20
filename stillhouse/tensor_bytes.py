"""Tensors <-> the bytes that they are, shared where that can be.

What `codec` is built from. Knows nothing of payloads.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillhouse.encodings import ValueType
from stillhouse.errors import CodecError

DTYPES: dict[ValueType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
VALUE_TYPES: dict[torch.dtype, ValueType] = {dtype: name for name, dtype in DTYPES.items()}

# Where a tensor in a shared buffer must start, for the widest of our elements.
_ALIGNMENT = 8


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the elements of a tensor, row by row: of one on the host that is contiguous, without a copy."""
    if not tensor.numel():  # an empty tensor may have strides that no view takes
        return memoryview(b"")
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data


def expect(name: str, tensor: Tensor, shape: tuple[int | None, ...], *dtypes: torch.dtype) -> None:
    """See that a tensor has a shape (None: of any length) and one of the dtypes.

    Raises:
        CodecError: it has not.
    """
    matches = len(shape) == tensor.dim() and all(b in (None, a) for a, b in zip(tensor.shape, shape, strict=True))
    if not matches or tensor.dtype not in dtypes:
        expected = f"{' or '.join(map(str, dtypes))} {list(shape)}"
        raise CodecError(f"{name} must be {expected}; got {tensor.dtype} {list(tensor.shape)}")


def require_little_endian() -> None:
    """See that this host's numbers have the byte order of the format.

    Raises:
        CodecError: they have not.
    """
    if sys.byteorder != "little":
        raise CodecError("payloads are little-endian and shared without a copy: this host's byte order cannot")


class TensorReader:
    """Takes one tensor after the other from a buffer.

    They share a writable buffer and keep it alive. A read-only one, or one that does not start at a multiple of 8, is
    copied once, whole.
    """

    def __init__(self, buffer: memoryview, start: int) -> None:
        array = np.frombuffer(buffer, dtype=np.uint8)
        if buffer.readonly or array.__array_interface__["data"][0] % _ALIGNMENT:
            array = array.copy()
        self._array = array
        self._at = start

    def take(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return the next tensor; the caller has seen to it that the bytes are there."""
        count = math.prod(shape)
        start, self._at = self._at, self._at + count * dtype.itemsize
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._array, dtype=dtype, count=count, offset=start).view(shape)

    def take_bytes(self, size: int | None = None) -> npt.NDArray[np.uint8]:
        """Return the next bytes, by default all that are left."""
        part = self._array[self._at : None if size is None else self._at + size]
        self._at += len(part)
        return part
