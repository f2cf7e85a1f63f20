"""Whether all of a tensor's values are finite, without a mask of them."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Return whether no value is a NaN or an infinity; so it is where there are none at all.

    A NaN is both the least and the largest of any values. Finding the two takes one pass and no memory, a mask of all
    values ten times as long.
    """
    return tensor.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in tensor.detach().aminmax())
