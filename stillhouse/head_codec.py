"""Output head <-> bytes, as `codec` does it for payloads, and behind the same header.

docs/payload-format.md is the specification. A head is as large as a model's vocabulary is wide (hundreds of MiB), so
what is written are views of its own memory, and what is read shares the buffer that it came in.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from stillhouse.encodings import ValueType
from stillhouse.errors import CodecError
from stillhouse.finite import all_finite
from stillhouse.payload_header import HEADER_BYTES, Header, Kind, read_header
from stillhouse.payloads import OutputHead
from stillhouse.tensor_bytes import DTYPES, VALUE_TYPES, TensorReader, bytes_of, require_little_endian

_SCALE_AND_SOFT_CAP = struct.Struct("<dd")


def encode_output_head(head: OutputHead, value_type: ValueType) -> list[bytes | memoryview]:
    """Return the bytes of an output head as buffers to be sent end to end.

    The weight and the bias are views wherever they lie on the host, contiguous, in the value type already; a head
    that does not is copied, once. Whoever holds the buffers holds the memory, which must not change until they are
    sent.

    Args:
        head: on any device; plain tensors, whole.
        value_type: of what travels, float32 or bfloat16.

    Raises:
        CodecError: tensors that contradict each other or hold a NaN or an infinity (also one that the value type would
            make of a weight), a scale or a cap that is not above 0, a part of a distributed tensor.
    """
    require_little_endian()
    _check(head)
    tensors = {"weight": head.weight, **({} if head.bias is None else {"bias": head.bias})}
    header = Header(Kind.OUTPUT_HEAD, value_type, head.vocabulary_size, head.hidden_size, count=len(tensors) - 1)
    values = [_cast(name, tensor, value_type) for name, tensor in tensors.items()]
    body: list[bytes | memoryview] = [_SCALE_AND_SOFT_CAP.pack(head.scale, head.soft_cap or 0.0)]
    body += map(bytes_of, values)
    return [header.pack(body, sum(map(len, body))), *body]


def decode_output_head(data: bytes | bytearray | memoryview) -> OutputHead:
    """Return the output head that `data` holds, on the host.

    From a writable buffer the tensors share memory with it, as in `decode_payload`.

    Raises:
        CodecError: anything but the whole, unaltered bytes of one output head of a known format.
    """
    require_little_endian()
    view = memoryview(data).cast("B")
    header = read_header(view)
    if header.kind is not Kind.OUTPUT_HEAD or header.value_type is None:
        raise CodecError(f"an output head was expected; got a {header.kind.name} payload")
    scale, soft_cap = _SCALE_AND_SOFT_CAP.unpack_from(view, HEADER_BYTES)
    reader = TensorReader(view, HEADER_BYTES + _SCALE_AND_SOFT_CAP.size)
    dtype = DTYPES[header.value_type]
    weight = reader.take(dtype, header.rows, header.width)
    bias = reader.take(dtype, header.rows) if header.count else None
    # 0 says that there is none; its other form, -0, would be a second way to say so.
    none = soft_cap == 0 and math.copysign(1, soft_cap) > 0
    head = OutputHead(weight, bias, scale, None if none else soft_cap)
    _check(head)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            _check_finite(name, tensor)
    return head


def _check(head: OutputHead) -> None:
    for name, tensor, shape in (
        ("weight", head.weight, (None, None)),
        ("bias", head.bias, (head.weight.shape[:1])),
    ):
        if tensor is None:
            continue
        # A subclass may hold only its own shard's bytes (DTensor), or none at all.
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_meta:
            kind = f"{type(tensor).__name__} on {tensor.device.type}"
            raise CodecError(f"an output head's {name} must be a whole tensor with values; got a {kind}")
        if tensor.dim() != len(shape) or tensor.dtype not in VALUE_TYPES or tensor.shape[:1] != head.weight.shape[:1]:
            raise CodecError(
                f"an output head's weight must be [V, D] and its bias [V], float32, float16 or bfloat16; "
                f"got a {name} {tensor.dtype} {list(tensor.shape)} beside a weight {list(head.weight.shape)}"
            )
    for name, value in (("scale", head.scale), ("soft_cap", head.soft_cap)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise CodecError(f"an output head's {name} must be finite and above 0; got {value}")


def _cast(name: str, tensor: Tensor, value_type: ValueType) -> Tensor:
    cast = tensor.detach().to(DTYPES[value_type])
    _check_finite(name, cast)
    return cast


def _check_finite(name: str, tensor: Tensor) -> None:
    if not all_finite(tensor):
        raise CodecError(f"an output head's {name} holds a NaN or an infinity as {tensor.dtype}: it is damaged")
