"""A copy of a worker's tensors in the host's memory, to be written while the originals move on.

The copy's memory is kept from one checkpoint to the next: it is needed again, and a machine that lacks it shows that at
the first checkpoint, not at the hundredth. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Snapshot:
    """The copy of named tensors, made anew by each `take`."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    def missing_bytes(self, tensors: Mapping[str, Tensor]) -> int:
        """Return how much memory `take` would have to ask for."""
        return sum(size_of_tensor(t) for name, t in tensors.items() if not self._fits(name, t))

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy everything; what was taken before is overwritten."""
        copies = {}
        with torch.no_grad():
            for name, tensor in tensors.items():
                if not self._fits(name, tensor):
                    # Pinned memory is what a GPU can copy into by itself.
                    self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                copies[name] = self._copies[name].copy_(tensor, non_blocking=tensor.is_cuda)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        self._copies = copies
        return copies

    def _fits(self, name: str, tensor: Tensor) -> bool:
        copy = self._copies.get(name)
        return copy is not None and copy.shape == tensor.shape and copy.dtype == tensor.dtype


def size_of_tensor(tensor: Tensor) -> int:
    """Return a tensor's size in bytes."""
    return tensor.numel() * tensor.element_size()
