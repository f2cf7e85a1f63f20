"""A model's body compiled by torch.compile, for one shape and so once.

Every batch is padded to the largest that the run has. A kernel chosen for a shape is then the same in every worker,
whatever batches it has seen before, and nothing is compiled while other workers wait. Dropout follows from torch's
seed as ever, but drops other values than the eager model does. Knows nothing of heads or losses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from stillhouse.errors import ConfigurationError
from student_worker.batches import NO_LABEL, PAD_TOKEN_ID, Batch

Body = Callable[[Tensor, Tensor], Tensor]
"""Takes ids and positions, `[B, L]` both; returns `[B, L, D]`."""


class CompiledBody:
    """Computes the states of a batch's rows by a compiled body.

    Args:
        body: what is compiled; its names stay as they were, since no module is wrapped.
    """

    def __init__(self, body: Body) -> None:
        self._body = torch.compile(body, dynamic=False)
        self._shape = (1, 1)

    def row_states(self, batch: Batch) -> Tensor:
        """Return `[R, D]` of a batch; one larger than what `compile` was told compiles anew."""
        size, length = batch.input_ids.shape
        rows, columns = max(size, self._shape[0]) - size, max(length, self._shape[1]) - length
        ids = pad(batch.input_ids, (0, columns, 0, rows), value=PAD_TOKEN_ID)
        # Positions run on, so that no padding begins a document of its own.
        beyond = batch.position_ids[:, -1:] + torch.arange(1, columns + 1, device=ids.device)
        positions = torch.cat([batch.position_ids, beyond], 1)
        below = torch.arange(length + columns, device=ids.device).expand(rows, -1)
        full = self._body(ids, torch.cat([positions, below]))
        moved = batch.rows // length * (length + columns) + batch.rows % length
        return full.flatten(0, 1).index_select(0, moved)

    def compile(self, batch_size: int, length: int, device: torch.device, *, autocast: bool) -> None:
        """Compile forward and backward pass for batches of at most this shape; gradients are left untouched or zero.

        Raises:
            ConfigurationError: this machine or this model cannot do it.
        """
        self._shape = (batch_size, length)
        ids = torch.full(self._shape, PAD_TOKEN_ID)
        rows = torch.arange(2)
        batch = Batch(ids, torch.arange(length).repeat(batch_size, 1), rows, torch.full_like(rows, NO_LABEL))
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                states = self.row_states(batch.to(device))
                torch.autograd.backward(states, torch.zeros_like(states))
        except (RuntimeError, OSError) as error:
            raise ConfigurationError(
                f"student.torch_compile: the model cannot be compiled on this machine: {_reason(error)}; "
                "install a C++ compiler (g++ or clang++; on CUDA, triton too), or drop the key"
            ) from error


def _reason(error: BaseException) -> str:
    """Return the first line of what happened first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
