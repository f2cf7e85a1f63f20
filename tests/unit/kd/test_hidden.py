"""What is learnt from hidden states: what their logits would teach, whatever the head does to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.encodings import Dense, Encoding, Hidden, ValueType
from stillhouse.fixtures import FixtureTeacher
from stillhouse.kd import causal_lm_kd_loss, kd_loss_and_gradient, kd_step, kd_step_per_position
from stillhouse.payloads import HiddenStates, OutputHead
from tests.unit.kd.conftest import naive_loss_and_gradient

pytestmark = pytest.mark.usefixtures("each_kernel")

V, N, D, ROWS = 31, 27, 5, 6
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.0625},
    "soft cap": {"soft_cap": 3.0},
    "all": {"bias": True, "scale": 1.5, "soft_cap": 2.0},
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(kind: str) -> OutputHead:
    fields = dict(HEADS[kind])
    bias = normal(V, seed=3) if fields.pop("bias", False) else None
    return OutputHead(normal(V, D, seed=4), bias, **fields)


def plain_logits(hidden: Tensor, head: OutputHead) -> Tensor:
    """The formula of `OutputHead`, in float64."""
    logits = hidden.double() @ head.weight.double().T
    if head.bias is not None:
        logits = logits + head.bias.double()
    logits = logits * head.scale
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_loss_and_gradient_are_those_of_the_logits(kind: str, temperature: float) -> None:
    hidden, student, labels = normal(ROWS, D), normal(ROWS, V, seed=1), torch.tensor([0, -100, 3, 26, 5, 1])
    wanted, gradient = naive_loss_and_gradient(
        student[:, :N], plain_logits(hidden, head(kind))[:, :N], labels, temperature=temperature, alpha=0.3
    )
    result = kd_loss_and_gradient(
        student.double(),
        HiddenStates(hidden),
        labels,
        temperature=temperature,
        alpha=0.3,
        vocabulary_size=N,
        output_head=head(kind),
    )
    assert result.loss == pytest.approx(wanted, rel=1e-9)
    torch.testing.assert_close(result.gradient[:, :N], gradient, rtol=1e-9, atol=1e-9)
    assert bool((result.gradient[:, N:] == 0).all())


def test_a_narrow_head_is_widened_once_and_for_one_kind_at_a_time() -> None:
    narrow = OutputHead(normal(V, D).bfloat16(), normal(V).bfloat16(), scale=0.5, soft_cap=9.0)
    wide = narrow.to(dtype=torch.float32, device=torch.device("cpu"))
    assert wide is narrow.to(dtype=torch.float32, device=torch.device("cpu"))
    assert wide.bias is not None
    assert (wide.weight.dtype, wide.bias.dtype, wide.scale, wide.soft_cap) == (torch.float32, torch.float32, 0.5, 9.0)
    assert narrow.to(dtype=torch.bfloat16, device=torch.device("cpu")) is narrow
    narrow.to(dtype=torch.float64, device=torch.device("cpu"))
    assert wide is not narrow.to(dtype=torch.float32, device=torch.device("cpu"))


class CountingTeacher(FixtureTeacher):
    heads = 0

    def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        self.heads += 1
        return super().output_head(value_type)


def last(teacher: FixtureTeacher, encoding: Encoding, given: OutputHead | None) -> tuple[float, Any]:
    student: Callable[[Any], Tensor] = lambda ids: normal(len(ids), V)  # noqa: E731 - a student in one line
    return kd_step(teacher, [[1, 2], [3]], [4, 5], 2.0, 0.3, student, encoding=encoding, output_head=given)


def every(teacher: FixtureTeacher, encoding: Encoding, given: OutputHead | None) -> tuple[float, Any]:
    def student(ids: Sequence[Sequence[int]]) -> list[Tensor]:
        return [normal(len(row), V) for row in ids]

    loss, gradients = kd_step_per_position(
        teacher, [[1, 2], [3]], [[2, 4], [5]], 2.0, 0.3, student, encoding=encoding, output_head=given
    )
    return loss, torch.cat(gradients)


def batch(teacher: FixtureTeacher, encoding: Encoding, given: OutputHead | None) -> tuple[float, Any]:
    logits, ids = normal(2, 3, V).requires_grad_(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    loss = causal_lm_kd_loss(
        logits,
        teacher,
        ids,
        attention_mask=None,
        temperature=2.0,
        alpha=0.3,
        input_ids=ids,
        encoding=encoding,
        output_head=given,
    )
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss.item(), logits.grad


@pytest.mark.parametrize("step", [last, every, batch])
@pytest.mark.parametrize("encoding", [Hidden("float32"), Hidden("bfloat16")])
def test_a_step_asks_for_the_head_that_it_was_not_given(step: Any, encoding: Encoding) -> None:
    teacher = CountingTeacher(V)
    loss, gradient = step(teacher, encoding, None)
    assert teacher.heads == 1
    assert step(teacher, encoding, FixtureTeacher(V).output_head())[0] == loss
    dense_loss, dense_gradient = step(teacher, Dense(), None)
    assert teacher.heads == 1
    assert loss == pytest.approx(dense_loss, rel=1e-6)
    torch.testing.assert_close(gradient, dense_gradient)
