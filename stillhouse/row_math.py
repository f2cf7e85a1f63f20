"""Sums and exponentials of rows, whose bits follow from the row alone.

torch promises nothing of the sort: how a sum or a scan is cut up depends on how many rows stand beside one another and
on how many threads there are, and of a vectorised function the last few elements may be computed by another routine.
An answer that is to be the same whoever shared its batch can't be built on those. Here a sum is a fixed binary tree of
additions, each of them an operation between elements, which IEEE 754 leaves no freedom; and on the host exp and log
are numpy's, one routine for every element wherever it stands. Shapes: P rows, N elements each.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def exp(x: Tensor) -> Tensor:
    """Return e to the x, element by element."""
    return torch.from_numpy(np.exp(x.numpy())) if x.device.type == "cpu" else x.exp()


def log(x: Tensor) -> Tensor:
    """Return the natural logarithm, element by element; of 0 it is -inf."""
    if x.device.type != "cpu":
        return x.log()
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(x.numpy()))


def halved(x_PN: Tensor) -> Tensor:
    """Return `[P, ceil(N / 2)]`: each element of the first half plus the one that stands so far into the second."""
    width = x_PN.shape[1]
    half = (width + 1) // 2
    # Where N is odd, the last of the first half has no other.
    sums = x_PN[:, :half].clone()
    sums[:, : width - half] += x_PN[:, half:]
    return sums


def row_sums_(x_PN: Tensor) -> Tensor:
    """Return the sum of each row, `[P]`: halved until one is left, in place, which leaves nothing of its elements."""
    while (width := x_PN.shape[1]) > 1:
        half = (width + 1) // 2
        x_PN[:, : width - half] += x_PN[:, half:]
        x_PN = x_PN[:, :half]
    return x_PN[:, 0]


def row_logsumexp(x_PN: Tensor) -> Tensor:
    """Return the log of the sum of exponentials of each row, `[P]`; of a row all -inf it is -inf."""
    largest_P = x_PN.amax(dim=1)
    # Of a row all -inf nothing is subtracted, since -inf - -inf is NaN.
    base_P = largest_P.where(largest_P > -torch.inf, 0.0)
    return base_P + log(row_sums_(exp(x_PN - base_P[:, None])))
