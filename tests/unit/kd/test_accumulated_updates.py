"""BATCH-006: however a global batch is cut, its parts add up to the update of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stillhouse.kd import kd_loss, kd_loss_and_gradient

ROWS, V, D = 24, 31, 8


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(V, D), nn.Linear(D, D), nn.GELU(), nn.Linear(D, V))


def parameters_gradient(model: nn.Module) -> Tensor:
    gradients = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    return torch.cat(gradients)


@pytest.mark.parametrize("cuts", [(12,), (1, 2, 3), (5, 6, 20, 23), tuple(range(1, ROWS))])
@pytest.mark.parametrize("autograd", [True, False])
def test_batch_006_an_accumulated_update_is_the_whole_batchs(
    model: nn.Module, cuts: tuple[int, ...], autograd: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, V, (ROWS,), generator=generator)
    teacher = 3 * torch.randn(ROWS, V, generator=generator)
    # Uneven on purpose: a part that averaged over its own rows would weigh its labels too much.
    labels = torch.randint(0, V, (ROWS,), generator=generator).masked_fill(torch.arange(ROWS) % 5 > 1, -100)
    mask = torch.arange(ROWS) % 7 != 3
    num_labelled = int(((labels != -100) & mask).sum())

    def backward(rows: slice) -> None:
        logits = model(ids[rows])
        if autograd:
            loss = kd_loss(
                logits,
                teacher[rows],
                labels[rows],
                temperature=2.0,
                alpha=0.4,
                mask=mask[rows],
                num_valid=int(mask.sum()),
                num_labelled=num_labelled,
            )
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return
        part = kd_loss_and_gradient(
            logits,
            teacher[rows],
            labels[rows],
            temperature=2.0,
            alpha=0.4,
            mask=mask[rows],
            num_valid=int(mask.sum()),
            num_labelled=num_labelled,
        )
        logits.backward(part.gradient)

    backward(slice(0, ROWS))
    whole = parameters_gradient(model)
    model.zero_grad()
    for start, stop in zip((0, *cuts), (*cuts, ROWS), strict=True):
        backward(slice(start, stop))
    accumulated = parameters_gradient(model)
    assert float((accumulated - whole).norm()) <= 1e-4 * float(whole.norm())
