"""How rows must lie in memory for the programs that go over them."""

from __future__ import annotations

from torch import Tensor


def flat(rows: Tensor) -> Tensor:
    """Return `[R, N]` with the elements of each row side by side; rows may be apart, or one and the same."""
    return rows if rows.stride(1) == 1 else rows.contiguous()
