"""Loss and gradient against float64 autograd over a reference that shares no code, on inputs made by hypothesis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.encode import encode_logits
from stillhouse.encodings import TopK
from stillhouse.kd import kd_loss, kd_loss_and_gradient
from stillhouse.payloads import DenseLogits, TopKLogits
from tests.asked import every_position
from tests.unit.kd.cases import Case, cases

pytestmark = pytest.mark.usefixtures("each_kernel")

Reference = Callable[..., tuple[float, Tensor]]


def check(case: Case, reference: Reference, *, rtol: float, out_dtype: torch.dtype | None = None) -> None:
    loss, gradient = reference(
        case.student, case.teacher, case.labels, temperature=case.temperature, alpha=case.alpha, mask=case.mask
    )
    out = None if out_dtype is None else torch.full(case.student.shape, torch.nan, dtype=out_dtype)
    result = kd_loss_and_gradient(
        case.student,
        DenseLogits(case.teacher),
        case.labels,
        temperature=case.temperature,
        alpha=case.alpha,
        mask=case.mask,
        out=out,
    )
    # KL is a difference of terms of order one, known to their rounding; T^2 (in the gradient T) multiplies that.
    assert result.loss == pytest.approx(loss, rel=rtol, abs=rtol * max(1.0, case.temperature**2))
    assert result.gradient.dtype == (out_dtype or case.student.dtype)
    bound = max(1.0, case.temperature, float(gradient.abs().max()))
    assert float((result.gradient.double() - gradient).abs().max()) <= rtol * bound
    assert bool((result.gradient[~case.mask] == 0).all())


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_dense_float64_agrees_to_rounding(reference: Reference, case: Case) -> None:
    check(case, reference, rtol=1e-10)


@given(case=cases(torch.float32))
@settings(max_examples=150, deadline=None)
def test_dense_float32_agrees_to_its_precision(reference: Reference, case: Case) -> None:
    check(case, reference, rtol=2e-5)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_narrow_inputs_are_summed_in_float32_and_only_the_gradient_is_rounded(
    reference: Reference, dtype: torch.dtype, rtol: float, data: st.DataObject
) -> None:
    case = data.draw(cases(dtype))
    check(case, reference, rtol=rtol)
    check(case, reference, rtol=2e-5, out_dtype=torch.float32)


@given(case=cases(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_top_k_is_the_divergence_over_the_head_and_one_bucket(
    reference: Reference, case: Case, data: st.DataObject
) -> None:
    student = case.student.float()
    finite = torch.where(case.teacher == -torch.inf, case.teacher.new_tensor(-1e4), case.teacher).float()
    student = torch.where(student == -torch.inf, student.new_tensor(-1e4), student)
    payload = top_k(finite, data.draw(st.integers(1, student.shape[1])), case.temperature)
    loss, gradient = reference(
        student,
        finite,
        case.labels,
        temperature=case.temperature,
        alpha=case.alpha,
        mask=case.mask,
        head_ids=payload.token_ids,
    )
    result = kd_loss_and_gradient(
        student, payload, case.labels, temperature=case.temperature, alpha=case.alpha, mask=case.mask
    )
    assert result.loss == pytest.approx(loss, rel=1e-4, abs=2e-6 * max(1.0, case.temperature**2))
    bound = max(1.0, case.temperature, float(gradient.abs().max()))
    assert float((result.gradient.double() - gradient).abs().max()) <= 1e-4 * bound


@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_the_autograd_form_hands_out_the_same_gradient(case: Case) -> None:
    leaf = case.student.clone().requires_grad_()
    options = {"temperature": case.temperature, "alpha": case.alpha, "mask": case.mask}
    loss = kd_loss(leaf, case.teacher, case.labels, **options)  # type: ignore[arg-type]  # a dict of both kinds
    (3 * loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    result = kd_loss_and_gradient(case.student, case.teacher, case.labels, **options)  # type: ignore[arg-type]  # as above
    assert loss.item() == pytest.approx(result.loss, rel=1e-12)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 3 * result.gradient)


def top_k(teacher: Tensor, k: int, temperature: float) -> TopKLogits:
    payload = encode_logits(
        [teacher],
        TopK(k, "float32"),
        sequence=every_position(len(teacher)),
        temperature=temperature,
        vocabulary_size=teacher.shape[1],
    )
    assert isinstance(payload, TopKLogits)
    return payload


def test_the_gradient_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([1, -100, 6, 0])
    assert torch.autograd.gradcheck(
        lambda s: kd_loss(s, teacher, labels, temperature=1.7, alpha=0.4), (student.requires_grad_(),)
    )


def test_many_chunks_of_masked_rows_come_out_as_one(reference: Reference) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, width = 50, 60_000  # two rows to a chunk
    student, teacher = (3 * torch.randn(rows, width, generator=generator) for _ in range(2))
    labels = torch.randint(0, width, (rows,), generator=generator)
    mask = torch.rand(rows, generator=generator) > 0.4
    loss, gradient = reference(student, teacher, labels, temperature=2.0, alpha=0.5, mask=mask)
    result = kd_loss_and_gradient(student, teacher, labels, temperature=2.0, alpha=0.5, mask=mask)
    assert result.loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(result.gradient.double(), gradient, atol=1e-7, rtol=1e-4)
