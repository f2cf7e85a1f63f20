"""Head and loss in one: the gradients of the plain way to the last digits, and never all logits at once."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stillhouse.encode import encode_logits
from stillhouse.encodings import Encoding, Sampled, TopK
from stillhouse.errors import VocabularyMismatchError
from stillhouse.kd import head, head_kd_loss, kd_loss
from stillhouse.kd.divergences import DivergenceName
from stillhouse.payloads import HiddenStates, OutputHead, Payload
from tests.asked import every_position
from tests.unit.kd.conftest import naive_loss_and_gradient

pytestmark = pytest.mark.usefixtures("each_kernel")

R, V, D, TAUGHT_D = 9, 31, 6, 4
LABELS = torch.tensor([3, -100, 0, 30, 5, 5, -100, 12, 7])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def student(dtype: torch.dtype = torch.float64, *, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    tensors = normal(R, D, dtype=dtype), normal(V, D, seed=1, dtype=dtype), normal(V, seed=2, dtype=dtype)
    hidden, weight, offset = (tensor.requires_grad_() for tensor in tensors)
    return hidden, weight, offset if bias else None


def taught(kind: str, temperature: float, dtype: torch.dtype = torch.float64) -> tuple[Payload | Tensor, Any]:
    if kind == "hidden":
        teacher_head = OutputHead(normal(V, TAUGHT_D, seed=4, dtype=dtype), scale=0.5, soft_cap=9.0)
        return HiddenStates(normal(R, TAUGHT_D, seed=5, dtype=dtype)), teacher_head
    logits = 2 * normal(R, V, seed=3, dtype=dtype)
    encodings: dict[str, Encoding] = {"top_k": TopK(4, "float32"), "sampled": Sampled(9)}
    if kind not in encodings:
        return logits, None
    payload = encode_logits(
        [logits.float()],
        encodings[kind],
        sequence=every_position(R),
        temperature=temperature,
        vocabulary_size=V,
    )
    return payload, None


def gradients(loss: Tensor, *leaves: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None]))


@given(
    temperature=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    alpha=st.sampled_from([0.0, 0.4, 1.0]),
    chunk_rows=st.sampled_from([1, 2, 4, 9, 100, None]),
    counts=st.lists(st.booleans(), min_size=R, max_size=R),
    bias=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_it_is_float64_autograd_through_the_head(
    temperature: float, alpha: float, chunk_rows: int | None, counts: list[bool], bias: bool
) -> None:
    hidden, weight, offset = student(bias=bias)
    teacher, mask = 2 * normal(R, V, seed=3), torch.tensor(counts)
    loss = head_kd_loss(
        hidden, weight, teacher, LABELS, temperature=temperature, alpha=alpha, head_bias=offset, mask=mask,
        chunk_rows=chunk_rows,
    )  # fmt: skip
    logits = nn.functional.linear(hidden, weight, offset)
    wanted, of_logits = naive_loss_and_gradient(
        logits, teacher, LABELS, temperature=temperature, alpha=alpha, mask=mask
    )
    assert loss.item() == pytest.approx(wanted, rel=1e-10, abs=1e-10)
    through = torch.autograd.grad(logits, [leaf for leaf in (hidden, weight, offset) if leaf is not None], of_logits)
    for ours, theirs in zip(gradients(loss, hidden, weight, offset), through, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "divergence"),
    [
        ("dense", "forward_kl"),
        ("hidden", "forward_kl"),
        ("top_k", "forward_kl"),
        ("sampled", "forward_kl"),
        ("dense", "jsd"),
        ("hidden", "reverse_kl"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_loss_of_logits_that_are_made_first(
    kind: str, divergence: DivergenceName, dtype: torch.dtype
) -> None:
    teacher, output_head = taught(kind, 2.0, dtype)
    options: dict[str, Any] = {"temperature": 2.0, "alpha": 0.3, "output_head": output_head, "loss": divergence}
    options |= {"mask": torch.arange(R) % 4 != 2, "num_valid": 20, "num_labelled": 11}
    hidden, weight, bias = student(dtype)
    ours = head_kd_loss(hidden, weight, teacher, LABELS, head_bias=bias, chunk_rows=2, **options)
    plain = kd_loss(nn.functional.linear(hidden, weight, bias), teacher, LABELS, **options)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    assert ours.item() == pytest.approx(plain.item(), rel=tolerance)
    for left, right in zip(
        gradients(3 * ours, hidden, weight, bias), gradients(3 * plain, hidden, weight, bias), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance / 10)


def test_a_named_size_cuts_the_heads_before_anything_is_made() -> None:
    hidden, weight, bias = student()
    teacher = 2 * normal(R, V - 3, seed=3)
    labels = LABELS.clamp_max(V - 6)
    options: dict[str, Any] = {"temperature": 2.0, "alpha": 0.3, "vocabulary_size": V - 5}
    ours = head_kd_loss(hidden, weight, teacher, labels, head_bias=bias, **options)
    plain = kd_loss(nn.functional.linear(hidden, weight, bias), teacher, labels, **options)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-12)
    for left, right in zip(gradients(ours, hidden, weight, bias), gradients(plain, hidden, weight, bias), strict=True):
        torch.testing.assert_close(left, right)
    with pytest.raises(VocabularyMismatchError, match="teacher's vocabulary has 28 entries, the student's 31"):
        head_kd_loss(hidden, weight, teacher, labels, temperature=2.0, alpha=0.3)


def test_a_head_that_is_tied_to_the_embeddings_gets_the_sum_of_both() -> None:
    def run(in_one: bool) -> Tensor:
        embeddings = nn.Embedding(V, D, dtype=torch.float64)
        embeddings.weight.data = normal(V, D, seed=1)
        hidden = torch.tanh(embeddings(LABELS.clamp_min(0)))
        teacher = 2 * normal(R, V, seed=3)
        options: dict[str, Any] = {"temperature": 2.0, "alpha": 0.3}
        weight = embeddings.weight
        loss = (
            head_kd_loss(hidden, weight, teacher, LABELS, chunk_rows=4, **options)
            if in_one
            else kd_loss(hidden @ weight.T, teacher, LABELS, **options)
        )
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(run(True), run(False))


def test_only_what_wants_a_gradient_gets_one() -> None:
    hidden, weight, _ = student()
    teacher = 2 * normal(R, V, seed=3)
    options: dict[str, Any] = {"temperature": 2.0, "alpha": 0.3}
    frozen = head_kd_loss(hidden, weight.detach(), teacher, LABELS, **options)
    both = head_kd_loss(hidden, weight, teacher, LABELS, **options)
    torch.testing.assert_close(gradients(frozen, hidden)[0], gradients(both, hidden)[0])
    alone = head_kd_loss(hidden.detach(), weight, teacher, LABELS, **options)
    with torch.no_grad():
        nothing = head_kd_loss(hidden, weight, teacher, LABELS, **options)
    assert not nothing.requires_grad
    assert nothing.item() == alone.item() == both.item()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_narrow_tensors_keep_their_dtype_and_lose_only_its_rounding(dtype: torch.dtype, bound: float) -> None:
    hidden, weight, bias = student(dtype)
    teacher = 2 * normal(R, V, seed=3)
    options: dict[str, Any] = {"temperature": 2.0, "alpha": 0.3, "num_valid": 5000, "num_labelled": 5000}
    ours = gradients(
        head_kd_loss(hidden, weight, teacher.to(dtype), LABELS, head_bias=bias, chunk_rows=3, **options) * 2.0**12,
        hidden,
        weight,
        bias,
    )
    h, w, b = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias) if tensor is not None]
    loss = head_kd_loss(h, w, teacher.to(dtype).double(), LABELS, head_bias=b, **options)
    exact = gradients(loss * 2.0**12, h, w, b)
    for left, right in zip(ours, exact, strict=True):
        assert left.dtype == dtype
        assert float((left.double() - right).norm()) <= bound * float(right.norm())


def test_under_autocast_the_matmuls_are_in_the_dtype_of_the_states() -> None:
    hidden, weight, _ = student(torch.float32)
    teacher, _ = taught("dense", 1.0, torch.float32)
    options: dict[str, Any] = {"temperature": 1.0, "alpha": 0.5}
    with torch.autocast("cpu", torch.bfloat16):
        states = nn.functional.linear(hidden, torch.eye(D))
        assert states.dtype == torch.bfloat16
        loss = head_kd_loss(states, weight, teacher, LABELS, **options)
    of_weight = gradients(loss, weight)[0]
    assert of_weight.dtype == torch.float32
    plain = gradients(kd_loss(hidden @ weight.T, teacher, LABELS, **options), weight)[0]
    assert float((of_weight - plain).norm()) <= 2e-2 * float(plain.norm())


def test_no_more_rows_of_logits_exist_at_once_than_were_allowed() -> None:
    hidden, weight, bias = student()
    teacher, output_head = taught("hidden", 2.0)
    rows: list[int] = []
    made = head._Head.logits

    def watched(self: Any, states: Tensor) -> Tensor:
        rows.append(len(states))
        return made(self, states)

    taught_rows: list[int] = []
    rebuilt = OutputHead.logits

    def rebuild(self: OutputHead, states: Tensor, width: int) -> Tensor:
        taught_rows.append(len(states))
        return rebuilt(self, states, width)

    with patch.object(head._Head, "logits", watched), patch.object(OutputHead, "logits", rebuild):
        head_kd_loss(
            hidden, weight, teacher, LABELS, head_bias=bias, temperature=2.0, alpha=0.5, output_head=output_head,
            chunk_rows=4, mask=torch.arange(R) > 1,
        )  # fmt: skip
    assert rows == [4, 3]
    assert taught_rows == [4, 3]


def test_nothing_that_counts_costs_nothing() -> None:
    hidden, weight, bias = student()
    loss = head_kd_loss(
        hidden, weight, 2 * normal(R, V, seed=3), LABELS, temperature=2.0, alpha=0.5, head_bias=bias,
        mask=torch.zeros(R, dtype=torch.bool),
    )  # fmt: skip
    assert loss.item() == 0.0
    assert all(not bool(gradient.any()) for gradient in gradients(loss, hidden, weight, bias))


def test_a_row_that_has_no_loss_is_named_by_its_place_among_all() -> None:
    hidden, weight, _ = student()
    states = hidden.detach().clone()
    states[7, 0] = torch.nan
    mask = torch.arange(R) != 1
    with pytest.raises(ValueError, match="row 7 of the student's logits has no finite log-normaliser"):
        head_kd_loss(
            states, weight, 2 * normal(R, V, seed=3), LABELS, temperature=1.0, alpha=0.5, chunk_rows=3, mask=mask
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden": torch.zeros(R)}, r"hidden must be a float tensor of two dimensions; got torch.float32 \(9,\)"),
        ({"head_weight": [1.0]}, "head_weight must be a float tensor of two dimensions; got list"),
        ({"head_weight": torch.zeros(V, 5)}, r"head_weight must be \[vocabulary, 6\], .*; got \(31, 5\)"),
        ({"head_bias": torch.zeros(V - 1)}, "head_bias must be a float tensor of the head's 31 ids"),
        ({"head_bias": torch.zeros(V, device="meta")}, "head_bias must be on hidden's device cpu; it is on meta"),
        ({"chunk_rows": 0}, "chunk_rows must be an integer of at least 1, or None .*; got 0"),
        ({"labels": [V] * R}, r"labels\[0\] must be -100 \(no label\) or an id from 0 to 30; got 31"),
        ({"num_valid": 0}, "num_valid must be an integer, at least 1"),
        ({"teacher": torch.zeros(R - 1, V)}, "one row for each of the student's 9; got 8"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "hidden": torch.zeros(R, D), "head_weight": torch.zeros(V, D), "teacher": torch.zeros(R, V),
        "labels": LABELS, "temperature": 1.0, "alpha": 0.5,
    }  # fmt: skip
    assert torch.isfinite(head_kd_loss(**right))
    with pytest.raises(ValueError, match=message):
        head_kd_loss(**right | wrong)
