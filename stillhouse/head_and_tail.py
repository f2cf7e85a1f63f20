"""The logits at some ids of each row, and how much all others weigh.

Each row's numbers follow from that row alone, bit by bit, whatever stands beside it: see `row_math`.
Shapes: P rows, N logits each, K ids.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillhouse import row_math
from stillhouse.device_rows.choice import device_programs

# The temperatures that float32 can divide by; as 0 or infinity, others would make a NaN of 0 or of -inf.
_ORDINARY = (1e-30, 1e30)


def head_and_tail(x_PN: Tensor, ids_PK: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the logits at the ids `[P, K]`, and four statistics `[P]` float32 as `TopKLogits` describes them.

    They are log-normaliser and log tail mass at T = 1, and both at the temperature; one so small that float32 can't
    hold the quotient makes the log-normaliser infinite. The ids of a row are distinct.
    """
    programs = device_programs(x_PN.device)
    # Of other temperatures than ordinary ones float32 has no quotient, in which the programs compute.
    if programs is not None and _ORDINARY[0] < temperature < _ORDINARY[1] and x_PN.dtype != torch.float64:
        result: tuple[Tensor, Tensor, Tensor, Tensor] = programs.statistics(x_PN, ids_PK, temperature)
    else:
        result = statistics_by_torch(x_PN, ids_PK, temperature)
    return (x_PN.gather(1, ids_PK), *result)


def statistics_by_torch(x_PN: Tensor, ids_PK: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four statistics by torch's own operations, or numpy's."""
    # All logits are taken relative to the largest, so that the mass of a tail keeps its digits beside logits of 1e4.
    x_PN = x_PN.float()
    largest_P1 = x_PN.amax(dim=1, keepdim=True)
    tail_PN = (x_PN - largest_P1).scatter_(1, ids_PK, -math.inf)
    relative_PK = x_PN.gather(1, ids_PK) - largest_P1
    untempered = _statistics(relative_PK, tail_PN, largest_P1[:, 0])
    if temperature == 1:
        return (*untempered, *untempered)
    if not _ORDINARY[0] < temperature < _ORDINARY[1]:
        tail_PN, relative_PK, largest_P1 = tail_PN.double(), relative_PK.double(), largest_P1.double()
    largest_P = largest_P1.div_(temperature)[:, 0]
    normalizer_P, tail_P = _statistics(relative_PK.div_(temperature), tail_PN.div_(temperature), largest_P)
    return (*untempered, normalizer_P.float(), tail_P.float())


def _statistics(head_PK: Tensor, tail_PN: Tensor, largest_P: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-normaliser and log tail mass of logits that are given relative to the largest."""
    head_P, tail_P = row_math.row_logsumexp(head_PK), row_math.row_logsumexp(tail_PN)
    relative_P = row_math.row_logsumexp(torch.stack((head_P, tail_P), dim=1))
    return largest_P + relative_P, tail_P - relative_P


def top_k_ids(x_PN: Tensor, k: int) -> Tensor:
    """Return the ids `[P, K]` int64 of the k largest, by falling value; among equals the lower id comes first."""
    programs = device_programs(x_PN.device)
    if programs is None or x_PN.dtype == torch.float64:
        return top_k_ids_by_torch(x_PN, k)
    ids: Tensor = programs.top_k_ids(x_PN, k)
    return ids


def top_k_ids_by_torch(x_PN: Tensor, k: int) -> Tensor:
    """Return them by torch's own operations."""
    # One more than asked tells whether the last of the head has an equal in the tail: topk promises nothing of ties.
    values, ids = x_PN.topk(min(k + 1, x_PN.shape[1]), dim=1)
    if values.shape[1] > k:
        tied = values[:, k] == values[:, k - 1]
        ids = ids[:, :k]
        if tied.any():
            ids[tied] = _lowest_ids_of_the_k_largest(x_PN[tied], values[tied, k - 1 : k], k)
    ids, _ = ids.sort(dim=1)
    order = x_PN.gather(1, ids).argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order)


def _lowest_ids_of_the_k_largest(x_PN: Tensor, last_P1: Tensor, k: int) -> Tensor:
    above, equal = x_PN > last_P1, x_PN == last_P1
    wanted = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1) <= wanted))
    return chosen.nonzero()[:, 1].view(-1, k)
