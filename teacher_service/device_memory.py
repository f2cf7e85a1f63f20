"""What fits into the device's memory, learnt from what did not.

Knows nothing of batches: it counts the tokens that it is told.
"""

from __future__ import annotations

import torch

# After so many batches without a failure twice as much is tried: what held the memory may be gone.
_BATCHES_BEFORE_MORE = 256

# What torch says in a plain RuntimeError where the CPU, or a library of CUDA, found no memory.
_MESSAGES = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class DeviceMemory:
    """The most tokens, padding included, that a batch should have; read from any thread."""

    def __init__(self) -> None:
        self.fitting_tokens: int | None = None
        """None while nothing has failed."""
        self._failed_tokens = 0
        self._batches_since = 0

    def failed(self, tokens: int) -> None:
        """Learn that a batch of so many tokens did not fit."""
        self.fitting_tokens = max(1, min(tokens, self.fitting_tokens or tokens) // 2)
        self._failed_tokens = max(self._failed_tokens, tokens)
        self._batches_since = 0

    def fitted(self) -> None:
        """Learn that a batch did fit."""
        self._batches_since += 1
        if self.fitting_tokens is None or self._batches_since < _BATCHES_BEFORE_MORE:
            return
        self._batches_since = 0
        self.fitting_tokens *= 2
        if self.fitting_tokens > self._failed_tokens:
            self.fitting_tokens, self._failed_tokens = None, 0


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, of a device or of the host, has run out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def release_cached_memory() -> None:
    """Give back what the allocator of CUDA keeps for later; nothing happens without CUDA."""
    torch.cuda.empty_cache()
