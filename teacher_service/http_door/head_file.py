"""The output head as one safetensors file, written in pieces: what rebuilds logits from HIDDEN with numpy alone.

The format is safetensors' own (https://github.com/huggingface/safetensors#format): the length of a JSON header as u64,
the header, the tensors end to end. Written by hand, since the package writes from a whole copy in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stillhouse.encodings import ValueType
from stillhouse.payloads import OutputHead
from stillhouse.tensor_bytes import DTYPES, bytes_of
from teacher_service.http_door.streaming import PIECE_BYTES

HEAD_TYPE = "application/octet-stream"

_NAMES: dict[ValueType, str] = {"float32": "F32", "bfloat16": "BF16"}

# What the format asks its header to be padded to, so that tensors are aligned.
_ALIGNMENT = 8


class HeadFile:
    """One head in one dtype. `weight` is `[V, D]`, and there is a `bias` `[V]` where the model has one."""

    def __init__(self, head: OutputHead, value_type: ValueType, fingerprint: str) -> None:
        self._dtype = DTYPES[value_type]
        self._tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
        soft_cap = {} if head.soft_cap is None else {"soft_cap": repr(head.soft_cap)}
        content: dict[str, object] = {
            "__metadata__": {"fingerprint": fingerprint, "scale": repr(head.scale), **soft_cap},
        }
        end = 0
        for name, tensor in self._tensors.items():
            start, end = end, end + tensor.numel() * self._dtype.itemsize
            content[name] = {"dtype": _NAMES[value_type], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(content).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._start = len(text).to_bytes(8, "little") + text
        self.num_bytes = len(self._start) + end

    def parts(self) -> Iterator[bytes | memoryview]:
        """Yield the file; a few rows of the weight are converted at once."""
        yield self._start
        for tensor in self._tensors.values():
            yield from self._rows(tensor)

    def _rows(self, tensor: Tensor) -> Iterator[memoryview]:
        rows = max(1, PIECE_BYTES // (self._dtype.itemsize * math.prod(tensor.shape[1:])))
        for start in range(0, len(tensor), rows):
            with torch.inference_mode():
                yield bytes_of(tensor[start : start + rows].to(self._dtype))
