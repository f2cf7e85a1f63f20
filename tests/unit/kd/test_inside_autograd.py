"""The loss among tensors that want gradients of their own, and under mixed precision's scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse import kd_loss, kd_loss_and_gradient
from stillhouse.kd import kd_logit_gradient
from stillhouse.payloads import DenseLogits, HiddenStates, OutputHead, Payload

pytestmark = pytest.mark.usefixtures("each_kernel")

N, D = 9, 3


def _weights(*shape: int) -> Tensor:
    return torch.nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))))


TEACHERS: dict[str, Callable[[], tuple[Payload | Tensor, OutputHead | None]]] = {
    "logits": lambda: (_weights(4, N) * 2, None),
    "dense": lambda: (DenseLogits(_weights(4, N)), None),
    "hidden": lambda: (HiddenStates(_weights(4, D)), OutputHead(_weights(N, D), _weights(N))),
}


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_teacher_that_wants_gradients_teaches_and_gets_none(kind: str, temperature: float) -> None:
    teacher, head = TEACHERS[kind]()
    student = torch.randn(4, N, generator=torch.Generator().manual_seed(7)).requires_grad_()
    options: dict[str, Any] = {"temperature": temperature, "alpha": 0.0, "output_head": head}
    both = kd_loss_and_gradient(student, teacher, **options)
    loss = kd_loss(student, teacher, **options)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert float(loss.detach()) == pytest.approx(both.loss)
    assert student.grad is not None
    assert torch.equal(student.grad, both.gradient)
    unaveraged = kd_logit_gradient(student, teacher, **options)
    torch.testing.assert_close(unaveraged / 4, both.gradient)
    assert not both.gradient.requires_grad
    assert not unaveraged.requires_grad
    assert head is None or head.weight.grad is None


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_gradient_that_was_handed_out_is_not_changed_by_the_next_backward(factor: float) -> None:
    leaf = torch.randn(4, N, generator=torch.Generator().manual_seed(7)).requires_grad_()
    loss = kd_loss(leaf * 1, torch.zeros(4, N), temperature=2.0, alpha=0.0) * factor
    (once,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    kept = once.clone()
    for _ in range(3):
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert torch.equal(once, kept)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 3 * kept)


@pytest.mark.parametrize("factor", [2.0**15, 2.0**16, 2.0**20])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 1.0), (0.5, 4.0)])
def test_a_float16_students_gradient_survives_the_average_under_a_scaler(
    each_kernel: str, factor: float, alpha: float, temperature: float
) -> None:
    """A GradScaler starts at 2^16, which float16 cannot hold, and multiplies the loss, not the gradient."""
    # An interpreted row takes 10 ms.
    rows, width = 128 if each_kernel == "triton" else 4096, 601
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(rows, width, generator=generator).half().requires_grad_()
    teacher = torch.randn(rows, width, generator=generator)
    labels = torch.randint(width, (rows,), generator=generator)
    loss = kd_loss(student, teacher, labels, temperature=temperature, alpha=alpha) * factor
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    wide = student.detach().float()
    exact = kd_loss_and_gradient(wide, teacher, labels, temperature=temperature, alpha=alpha).gradient
    assert student.grad is not None
    error = (student.grad.float() / factor - exact).norm() / exact.norm()
    assert float(error) < 1e-3


def test_a_float16_gradient_of_few_rows_at_a_high_temperature_is_finite() -> None:
    student = torch.zeros(2, N).half().requires_grad_()
    teacher = torch.full((2, N), -1e4).scatter_(1, torch.tensor([[1], [2]]), 1e4)
    loss = kd_loss(student, teacher, [1, 2], temperature=1000.0, alpha=0.0, num_valid=2, num_labelled=100_000)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.any()
