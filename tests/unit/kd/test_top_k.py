"""What is learnt from a head of k ids and the known mass of its tail."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.encode import encode_logits
from stillhouse.encodings import TopK, ValueType
from stillhouse.errors import InvalidRequestError, VocabularyMismatchError
from stillhouse.kd import kd_loss_and_gradient
from stillhouse.payloads import TopKLogits
from tests.asked import every_position

pytestmark = pytest.mark.usefixtures("each_kernel")

V, T = 50, 2.0


def random_logits(seed: int, width: int = V, rows: int = 4) -> Tensor:
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def top_k(logits: Tensor, k: int, temperature: float = T, value_type: ValueType = "float32") -> TopKLogits:
    encoding = TopK(k, value_type)
    payload = encode_logits(
        [logits],
        encoding,
        sequence=every_position(len(logits)),
        temperature=temperature,
        vocabulary_size=logits.shape[1],
    )
    assert isinstance(payload, TopKLogits)
    return payload


def kl(student: Tensor, teacher: Any, **options: Any) -> float:
    return kd_loss_and_gradient(student, teacher, None, **({"temperature": T, "alpha": 0.0} | options)).loss


@given(seed=st.integers(0, 1000), k=st.integers(1, V - 1))
@settings(max_examples=50, deadline=None)
def test_the_bucketed_divergence_is_a_lower_bound_that_grows_with_k(seed: int, k: int) -> None:
    student, teacher = random_logits(seed), random_logits(seed + 1)
    less, more, full = kl(student, top_k(teacher, k)), kl(student, top_k(teacher, k + 1)), kl(student, teacher)
    assert less <= more + 1e-5
    assert more <= full + 1e-5


def test_a_head_of_the_whole_vocabulary_is_the_full_divergence() -> None:
    student, teacher = random_logits(0), random_logits(1)
    assert kl(student, top_k(teacher, V)) == pytest.approx(kl(student, teacher), rel=1e-6)


@pytest.mark.parametrize("value_type", ["float16", "float32"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_gradient_rows_add_up_to_nothing_even_where_the_head_was_rounded(
    value_type: ValueType, temperature: float
) -> None:
    payload = top_k(100 * random_logits(1), 7, temperature, value_type)
    result = kd_loss_and_gradient(random_logits(0), payload, [1, 2, 3, -100], temperature=temperature, alpha=0.3)
    assert result.gradient.sum(-1).abs().max() < 1e-6


def test_a_student_that_agrees_has_no_gradient() -> None:
    teacher = random_logits(1)
    result = kd_loss_and_gradient(teacher, top_k(teacher, 5), None, temperature=T, alpha=0.0)
    assert result.loss == pytest.approx(0.0, abs=1e-5)
    assert result.gradient.abs().max() < 1e-6


def test_a_tail_far_below_the_head_keeps_its_digits() -> None:
    """`1 - sum(head)` is 0 here, and its logarithm -inf: only a log-normaliser of the tail's own knows better."""
    student, teacher = torch.zeros(1, 4), torch.zeros(1, 4)
    student[0, 0], teacher[0, 0] = 1e4, 40.0
    result = kd_loss_and_gradient(student, top_k(teacher, 1, 1.0), None, temperature=1.0, alpha=0.0)
    log_tail = math.log(3) - 40
    assert result.loss == pytest.approx(math.exp(log_tail) * (log_tail - (math.log(3) - 1e4)), rel=1e-3)
    assert bool(result.gradient.isfinite().all())


def test_the_renormalised_form_drops_the_tail() -> None:
    student, teacher = random_logits(0), random_logits(1)
    payload = top_k(teacher, 6)
    ids = payload.token_ids.long()
    p = torch.softmax(teacher.gather(1, ids).double() / T, -1)
    log_q = torch.log_softmax(student.double() / T, -1).gather(1, ids)
    expected = T**2 * (p * (p.log() - log_q)).sum(-1).mean()
    assert kl(student, payload, top_k_tail="renormalise") == pytest.approx(expected.item(), rel=1e-5)
    assert kl(student, payload, top_k_tail="renormalise") > kl(student, payload)


def test_another_temperature_is_refused_and_both_are_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"temperature is 1\.0, but the teacher's answer was made at 2\.0"):
        kl(random_logits(0), top_k(random_logits(1), 5), temperature=1.0)
    assert kl(random_logits(0), replace(top_k(random_logits(1), 5), temperature=2.0000001)) > 0


def test_an_answer_normalised_over_another_n_cannot_be_cut() -> None:
    payload = top_k(random_logits(1, width=V - 5), 5)
    with pytest.raises(VocabularyMismatchError, match="teacher's vocabulary has 45 entries, the student's 50"):
        kl(random_logits(0), payload)
    assert kl(random_logits(0), payload, vocabulary_size=V - 5) == kl(random_logits(0)[:, : V - 5], payload)
    with pytest.raises(
        VocabularyMismatchError, match="normalised over 45 ids; ask the teacher with vocabulary_size=40"
    ):
        kl(random_logits(0), payload, vocabulary_size=40)


def test_a_student_that_rules_out_the_head_or_the_tail_is_refused() -> None:
    payload = top_k(random_logits(1), 5)
    for ids in (payload.token_ids[0].long()[:1], None):
        student = random_logits(0)
        if ids is None:
            kept = student[0, payload.token_ids[0].long()].clone()
            student[0] = -math.inf
            student[0, payload.token_ids[0].long()] = kept
        else:
            student[0, ids] = -math.inf
        with pytest.raises(ValueError, match="row 0 of the student's logits is -inf where"):
            kl(student, payload)


def test_a_teacher_that_rules_out_most_ids_has_no_tail() -> None:
    teacher = torch.full((1, V), -math.inf)
    teacher[0, :3] = torch.tensor([1.0, 2.0, 0.5])
    student = random_logits(0, rows=1)
    for k in (2, 3, 7):
        assert kl(student, top_k(teacher, k)) <= kl(student, teacher) + 1e-5
    assert kl(student, top_k(teacher, 7)) == pytest.approx(kl(student, teacher), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": torch.full((4, 5), V)}, "token_ids of a sparse answer must be from 0 to 49"),
        ({"logits": torch.full((4, 5), math.nan)}, "holds a NaN"),
    ],
)
def test_a_damaged_answer_is_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kl(random_logits(0), replace(top_k(random_logits(1), 5), **change))  # type: ignore[arg-type]  # tensors all


def test_an_unknown_treatment_of_the_tail_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="top_k_tail must be bucket or renormalise; got 'drop'"):
        kl(random_logits(0), top_k(random_logits(1), 5), top_k_tail="drop")
