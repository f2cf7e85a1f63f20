"""The reference: the loss as the design writes it, in float64, left to autograd. Shares no code with `stillhouse`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.kd import kernels

Reference = Callable[..., tuple[float, Tensor]]


@pytest.fixture(scope="module", params=["compiled", "triton", "chunks"])
def each_kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a module's tests with each kernel that there is: numba's, Triton's in its interpreter, and the row chunks."""
    if request.param == "compiled" and not kernels.is_compiled():
        pytest.skip("NOT TESTED: the compiled kernel; numba is not installed")
    if request.param == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("NOT TESTED: the kernel for a GPU; triton is not installed")
    name = {"chunks": "row chunks"}.get(request.param, request.param)
    # numpy speaks of a difference of infinities, where a GPU says nothing.
    quiet = np.errstate(all="ignore") if name == "triton" else nullcontext()
    with pytest.MonkeyPatch.context() as patch, quiet:
        patch.setattr(kernels, "chosen", lambda _device: name)
        yield request.param


@pytest.fixture(scope="session")
def reference() -> Reference:
    return naive_loss_and_gradient


def naive_loss_and_gradient(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    mask: Tensor | None = None,
    head_ids: Tensor | None = None,
) -> tuple[float, Tensor]:
    """Row by row; with `head_ids` `[R, K]` the KL is over those ids and one bucket for all others."""
    s = student.detach().double().requires_grad_()
    t = teacher.detach().double()
    rows = range(len(s)) if mask is None else [i for i in range(len(s)) if mask[i]]
    cross_entropies, divergences = [], []
    for i in rows:
        if labels[i] != -100:
            cross_entropies.append(-torch.log_softmax(s[i], -1)[labels[i]])
        log_p = torch.log_softmax(t[i] / temperature, -1)
        log_q = torch.log_softmax(s[i] / temperature, -1)
        if head_ids is not None:
            log_p, log_q = bucketed(log_p, head_ids[i]), bucketed(log_q, head_ids[i])
        possible = log_p > -torch.inf
        divergences.append((log_p[possible].exp() * (log_p[possible] - log_q[possible])).sum())
    loss = s[:, :0].sum()
    if cross_entropies:
        loss = loss + alpha * torch.stack(cross_entropies).mean()
    if divergences:
        loss = loss + (1 - alpha) * temperature**2 * torch.stack(divergences).mean()
    (gradient,) = torch.autograd.grad(loss, s)
    return loss.item(), gradient


def bucketed(log_probs: Tensor, head_ids: Tensor) -> Tensor:
    outside = torch.ones(len(log_probs), dtype=torch.bool).index_fill(0, head_ids.long(), False)
    return torch.cat([log_probs[head_ids.long()], torch.logsumexp(log_probs[outside], 0, keepdim=True)])
