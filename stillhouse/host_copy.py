"""Tensors to the host's memory, from a GPU at the speed of its bus.

A GPU writes memory that the system may move through a small buffer of the driver's, at a tenth of that speed. Here it
writes into memory that stays where it is, a piece at a time, which torch keeps for the next piece.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PIECE_BYTES = 16 * 2**20


def copy_to_host(source: Tensor, target: Tensor) -> None:
    """Copy `source`, on any device, into `target` on the host, of the same shape; cast to its dtype."""
    if not source.is_cuda or source.dim() == 0:
        target.copy_(source)
        return
    row_bytes = max(1, target[:1].numel() * target.element_size())
    rows = max(1, _PIECE_BYTES // row_bytes)
    for start in range(0, len(target), rows):
        part = source[start : start + rows]
        staged = torch.empty(part.shape, dtype=target.dtype, pin_memory=True)
        staged.copy_(part, non_blocking=True)
        torch.cuda.current_stream(source.device).synchronize()
        target[start : start + rows] = staged


def on_host(source: Tensor) -> Tensor:
    """Return a copy on the host."""
    target = torch.empty(source.shape, dtype=source.dtype)
    copy_to_host(source, target)
    return target
