"""Sums and exponentials of rows, whose bits follow from the row alone.

torch promises nothing of the sort: how a sum or a scan is cut up depends on how many rows stand beside one another and
on how many threads there are, and of a vectorised function the last few elements may be computed by another routine.
An answer that is to be the same whoever shared its batch can't be built on those. Here a sum is a fixed binary tree of
additions, each of them an operation between elements, which IEEE 754 leaves no freedom; and on the host exp and log
are numpy's, one routine for every element wherever it stands. Shapes: P rows, N elements each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""A numpy array on the host, a tensor on a device. Both are sliced, indexed, compared and added in the same words, and
for a row or two numpy needs a fifth of torch's time, which goes into calling and not into computing."""


def as_array(x: Tensor) -> Array:
    """Return the same memory as an `Array`."""
    return x.numpy() if x.device.type == "cpu" else x


def as_tensor(x: Array) -> Tensor:
    """Return the same memory as a tensor."""
    return x if isinstance(x, Tensor) else torch.from_numpy(x)


def exp(x: Array) -> Array:
    """Return e to the x, element by element."""
    return x.exp() if isinstance(x, Tensor) else np.exp(x)


def log(x: Array) -> Array:
    """Return the natural logarithm, element by element; of 0 it is -inf."""
    if isinstance(x, Tensor):
        return x.log()
    with np.errstate(divide="ignore"):
        return np.log(x)


def halve_(x_PN: Array) -> Array:
    """Add the second half of each row to the first, element by element, and return the first, `[P, ceil(N / 2)]`."""
    width = x_PN.shape[1]
    half = (width + 1) // 2
    # Where N is odd, the last of the first half has no other.
    x_PN[:, : width - half] += x_PN[:, half:]
    return x_PN[:, :half]


def row_sums_(x_PN: Array) -> Array:
    """Return the sum of each row, `[P]`: halved until one is left, which leaves nothing of its elements."""
    while x_PN.shape[1] > 1:
        x_PN = halve_(x_PN)
    return x_PN[:, 0]


def row_logsumexp(x_PN: Tensor) -> Tensor:
    """Return the log of the sum of exponentials of each row, `[P]`; of a row all -inf it is -inf."""
    largest_P1 = x_PN.amax(dim=1, keepdim=True)
    # Of a row all -inf nothing is subtracted, since -inf - -inf is NaN.
    base_P1 = largest_P1.masked_fill_(largest_P1 == -torch.inf, 0.0)
    sums_P = row_sums_(exp(as_array(x_PN - base_P1)))
    return base_P1[:, 0] + as_tensor(log(sums_P))
