"""What a loss refuses, and what it bears."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.errors import InvalidRequestError, VocabularyMismatchError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.kd import kd_logit_gradient, kd_loss, kd_loss_and_gradient, kd_step
from stillhouse.payloads import DenseLogits, HiddenStates, OutputHead

pytestmark = pytest.mark.usefixtures("each_kernel")

V = 9
INF = math.inf


def logits(rows: int = 3, width: int = V, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def loss(student: Tensor, teacher: Any, labels: Any = None, **options: Any) -> float:
    return kd_loss_and_gradient(student, teacher, labels, **({"temperature": 2.0, "alpha": 0.5} | options)).loss


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, INF, True, "2", None])
def test_a_temperature_that_is_no_positive_number_is_refused(temperature: Any) -> None:
    with pytest.raises(ValueError, match="temperature must be a finite number above 0; got"):
        loss(logits(), logits(), temperature=temperature)
    with pytest.raises(ValueError, match="temperature"):
        kd_step(FixtureTeacher(V), [[1]], [1], temperature, 0.5, lambda _: pytest.fail("the student was run"))


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, True, "0.5", None])
def test_an_alpha_outside_zero_to_one_is_refused_and_says_what_it_weighs(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"alpha, the weight of cross-entropy \(1 - alpha weighs KL\)"):
        loss(logits(), logits(), alpha=alpha)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), 1])
def test_numbers_of_other_libraries_are_numbers(number: Any) -> None:
    assert math.isfinite(loss(logits(), logits(), temperature=number, alpha=number))


@pytest.mark.parametrize("label", [-1, -99, V, 10**6])
def test_a_label_outside_the_vocabulary_is_refused_before_anybody_is_asked(label: int) -> None:
    with pytest.raises(ValueError, match=rf"labels\[1\] must be -100 \(no label\) or an id from 0 to 8; got {label}"):
        loss(logits(), logits(), [0, label, 2])
    with pytest.raises(ValueError, match=r"labels\[0\]"):
        kd_step(FixtureTeacher(V), [[1]], [label], 2.0, 0.5, lambda _: pytest.fail("the student was run"))


@pytest.mark.parametrize("labels", [[0, 1], [0.0, 1.0, 2.0], [True, False, True], [[0], [1], [2]]])
def test_labels_that_are_not_one_integer_a_row_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match="labels must"):
        loss(logits(), logits(), labels)


@pytest.mark.parametrize("mask", [[True, False], torch.ones(3), [1, 1, 0]])
def test_a_mask_that_is_not_one_bool_a_row_is_refused(mask: Any) -> None:
    with pytest.raises(ValueError, match="mask must be bool"):
        loss(logits(), logits(), mask=mask)


def test_sizes_that_differ_are_an_error_that_names_both() -> None:
    with pytest.raises(VocabularyMismatchError, match="teacher's vocabulary has 7 entries, the student's 9"):
        loss(logits(), logits(width=7))
    with pytest.raises(VocabularyMismatchError, match="teacher's vocabulary has 7 entries, the student's 9"):
        kd_step(FixtureTeacher(7), [[1]], [1], 2.0, 0.5, lambda _: logits(1))
    with pytest.raises(VocabularyMismatchError, match="vocabulary_size is 8"):
        loss(logits(), logits(width=7), vocabulary_size=8)


def test_a_named_size_cuts_both_sides_before_softmax() -> None:
    student, teacher = logits(width=9), logits(width=7, seed=1)
    student[:, 6:], teacher[:, 6:] = 1e4, math.nan
    result = kd_loss_and_gradient(student, teacher, [0, 5, -100], temperature=2.0, alpha=0.5, vocabulary_size=6)
    cut = kd_loss_and_gradient(student[:, :6], teacher[:, :6], [0, 5, -100], temperature=2.0, alpha=0.5)
    assert result.loss == cut.loss
    torch.testing.assert_close(result.gradient[:, :6], cut.gradient)
    assert result.gradient[:, 6:].abs().max() == 0
    with pytest.raises(ValueError, match="id from 0 to 5; got 6"):
        loss(student, teacher, [6, 0, 0], vocabulary_size=6)


def test_another_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="one row for each of the student's 3; got 2"):
        loss(logits(), logits(2))


@pytest.mark.parametrize("wrong", [logits()[0], torch.ones(3, V, dtype=torch.int64), [[0.0] * V] * 3])
def test_logits_that_are_no_float_matrix_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"student_logits must be a float tensor \[rows, vocabulary\]"):
        loss(wrong, logits())


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("bad", [[math.nan], [INF], [-INF] * V])
def test_a_row_without_a_softmax_is_refused_and_named(side: str, bad: list[float]) -> None:
    student, teacher = logits(), logits(seed=1)
    (student if side == "student" else teacher)[1, : len(bad)] = torch.tensor(bad)
    with pytest.raises(ValueError, match=f"row 1 of the {side}'s logits has no finite log-normaliser"):
        loss(student, teacher, [0, 1, 2])
    with pytest.raises(ValueError, match="log-normaliser"):
        kd_loss(student.requires_grad_(), teacher, [0, 1, 2], temperature=1.0, alpha=0.0)


def test_a_student_that_rules_out_its_label_is_refused() -> None:
    student, teacher = logits(), logits(seed=1)
    student[2, 4] = teacher[2, 4] = -INF
    assert math.isfinite(loss(student, teacher, [0, 1, 3]))
    with pytest.raises(ValueError, match="row 2 of the student's logits is -inf at its label 4"):
        loss(student, teacher, [0, 1, 4])


@pytest.mark.parametrize("teacher_logit", [0.0, -1e4])
def test_a_student_that_rules_out_what_the_teacher_does_not_is_refused(teacher_logit: float) -> None:
    student, teacher = logits(), logits(seed=1)
    student[2, 4], teacher[2, 4] = -INF, teacher_logit
    with pytest.raises(ValueError, match="row 2 of the student's logits is -inf where the teacher's row 2 has mass"):
        loss(student, teacher, temperature=1.0)


def test_what_the_teacher_rules_out_contributes_nothing() -> None:
    student, teacher = logits(), logits(seed=1)
    teacher[:, 5] = -INF
    almost = teacher.clone()
    almost[:, 5] = -1e4
    assert loss(student, teacher) == pytest.approx(loss(student, almost), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_logits_of_ten_thousand_have_a_finite_loss_and_no_clamp(temperature: float) -> None:
    student, teacher = torch.zeros(1, 2), torch.zeros(1, 2)
    student[0, 0], teacher[0, 1] = 1e4, 1e4
    result = kd_loss_and_gradient(student, teacher, [1], temperature=temperature, alpha=0.5)
    assert result.cross_entropy == pytest.approx(1e4)
    assert result.kl == pytest.approx(temperature * 1e4)
    assert bool(result.gradient.isfinite().all())


def test_rows_that_do_not_count_are_never_read() -> None:
    student, teacher = logits(4), logits(4, seed=1)
    kept = kd_loss_and_gradient(student[::2], teacher[::2], [1, 2], temperature=2.0, alpha=0.5)
    student[1], teacher[3] = math.nan, -INF
    result = kd_loss_and_gradient(
        student, teacher, [1, 10**9, 2, -7], temperature=2.0, alpha=0.5, mask=[True, False, True, False]
    )
    assert (result.num_valid, result.num_labelled) == (2, 2)
    assert result.loss == pytest.approx(kept.loss, rel=1e-6)
    torch.testing.assert_close(result.gradient[::2], kept.gradient)
    assert result.gradient[1::2].abs().max() == 0


def test_nothing_counts_and_nothing_is_labelled() -> None:
    for options in ({"mask": torch.zeros(3, dtype=torch.bool)}, {"alpha": 1.0}):
        result = kd_loss_and_gradient(
            logits(),
            logits(seed=1),
            None,
            **({"temperature": 2.0, "alpha": 0.5} | options),
        )
        assert (result.loss, result.num_labelled) == (0.0, 0)
        assert result.gradient.abs().max() == 0
    assert loss(logits(0), logits(0), []) == 0.0


def test_the_label_of_minus_100_has_no_cross_entropy_and_its_divergence_counts() -> None:
    student, teacher = logits(), logits(seed=1)
    whole = kd_loss_and_gradient(student, teacher, [-100, 1, -100], temperature=2.0, alpha=0.5)
    assert (whole.num_valid, whole.num_labelled) == (3, 1)
    assert whole.cross_entropy == pytest.approx(-float(torch.log_softmax(student[1], -1)[1]), rel=1e-6)
    assert whole.kl == pytest.approx(loss(student, teacher, alpha=0.0), rel=1e-6)
    assert whole.loss == pytest.approx(0.5 * whole.cross_entropy + 0.5 * whole.kl)


def test_parts_with_the_global_denominators_add_up() -> None:
    student, teacher, labels = logits(6), logits(6, seed=1), [0, -100, 2, 3, -100, -100]
    whole = kd_loss_and_gradient(student, teacher, labels, temperature=2.0, alpha=0.5)
    parts = [
        kd_loss_and_gradient(
            student[rows], teacher[rows], labels[rows], temperature=2.0, alpha=0.5, num_valid=6, num_labelled=3
        )
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss, rel=1e-6)
    torch.testing.assert_close(torch.cat([part.gradient for part in parts]), whole.gradient)


@pytest.mark.parametrize("denominator", [0, -1, 2.0, True])
def test_a_denominator_that_cannot_be_divided_by_is_refused(denominator: Any) -> None:
    for name in ("num_valid", "num_labelled"):
        with pytest.raises(ValueError, match=f"{name} must be an integer, at least 1"):
            loss(logits(), logits(), [0, 1, 2], **{name: denominator})


def test_the_gradient_is_written_where_it_is_asked_for() -> None:
    out = torch.full((3, V), math.nan)
    result = kd_loss_and_gradient(logits(), logits(seed=1), None, temperature=2.0, alpha=0.0, out=out)
    assert result.gradient is out
    assert bool(out.isfinite().all())
    assert kd_logit_gradient(logits(), logits(seed=1), None, temperature=2.0, alpha=0.0, out=out) is out


def test_an_out_that_cannot_hold_the_gradient_is_refused() -> None:
    student = logits()
    with pytest.raises(ValueError, match="out must be a float tensor of shape"):
        kd_loss_and_gradient(student, logits(), None, temperature=2.0, alpha=0.0, out=torch.empty(2, V))
    with pytest.raises(ValueError, match="out must not share memory with student_logits"):
        kd_loss_and_gradient(student, logits(), None, temperature=2.0, alpha=0.0, out=student)
    nothing = torch.empty(0, V)  # shares no memory with anything
    assert kd_loss_and_gradient(nothing, nothing, None, temperature=2.0, alpha=0.0, out=torch.empty(0, V)).loss == 0


def test_the_logits_are_left_as_they_were() -> None:
    student, teacher = logits(), logits(seed=1)
    loss(student, teacher, [0, 1, 2])
    assert torch.equal(student, logits())
    assert torch.equal(teacher, logits(seed=1))


def test_without_autograd_only_the_loss_is_made() -> None:
    student = logits().requires_grad_()
    with torch.no_grad():
        value = kd_loss(student, logits(seed=1), [0, 1, 2], temperature=2.0, alpha=0.5)
    assert not value.requires_grad
    assert value.item() == pytest.approx(loss(student.detach(), logits(seed=1), [0, 1, 2]))


def test_hidden_states_teach_what_their_logits_teach() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(700, 5, generator=generator), torch.randn(12, 5, generator=generator)
    bias, student = torch.randn(12, generator=generator), torch.randn(700, 12, generator=generator)
    mask = torch.rand(700, generator=generator) > 0.3
    options: dict[str, Any] = {"temperature": 2.0, "alpha": 0.0, "mask": mask, "vocabulary_size": 11}
    result = kd_loss_and_gradient(student, HiddenStates(hidden), None, output_head=OutputHead(weight, bias), **options)
    dense = kd_loss_and_gradient(student, hidden @ weight.T + bias, None, **options)
    assert result.loss == pytest.approx(dense.loss, rel=1e-5)
    torch.testing.assert_close(result.gradient, dense.gradient, atol=1e-7, rtol=1e-4)


def test_hidden_states_need_an_output_head_of_their_width() -> None:
    with pytest.raises(InvalidRequestError, match="output_head must be given"):
        loss(logits(), HiddenStates(torch.randn(3, 5)))
    with pytest.raises(InvalidRequestError, match=r"output_head\.weight must have the hidden states' width 5; got 4"):
        loss(logits(), HiddenStates(torch.randn(3, 5)), output_head=OutputHead(torch.randn(V, 4)))


def test_an_output_head_is_converted_once() -> None:
    head = OutputHead(torch.randn(V, 4, dtype=torch.bfloat16), torch.randn(V, dtype=torch.bfloat16), 0.5, 30.0)
    converted = head.to(dtype=torch.float32, device=torch.device("cpu"))
    assert converted is head.to(dtype=torch.float32, device=torch.device("cpu"))
    assert converted is converted.to(dtype=torch.float32, device=torch.device("cpu"))
    assert (converted.weight.dtype, converted.scale, converted.soft_cap) == (torch.float32, 0.5, 30.0)
    assert converted.bias is not None
    assert converted.bias.dtype == torch.float32


def test_a_teacher_must_answer_one_row_for_each_sequence() -> None:
    class Eager(FixtureTeacher):
        def logits(self, *_args: Any, **_options: Any) -> Any:
            return tuple(DenseLogits(torch.zeros(2, V)) for _ in range(2))

    with pytest.raises(ValueError, match="for sequence 0 it gave 2"):
        kd_step(Eager(V), [[1, 2], [3, 4]], [1, 1], 2.0, 0.5, lambda _: logits(2))
    with pytest.raises(ValueError, match="one entry per sequence, 1; got 2"):
        kd_step(Eager(V), [[1, 2]], [1], 2.0, 0.5, lambda _: logits(1))


@pytest.mark.parametrize("size", [0, -1])
def test_a_named_size_that_is_no_size_is_refused_by_name(size: int) -> None:
    rows = torch.zeros(2, 5)
    with pytest.raises(InvalidRequestError, match=f"vocabulary_size must be at least 1.*got {size}"):
        kd_loss(rows, rows, temperature=1.0, alpha=0.0, vocabulary_size=size)
    with pytest.raises(InvalidRequestError, match=f"vocabulary_size must be at least 1.*got {size}"):
        kd_step(FixtureTeacher(5), [[1]], [2], 1.0, 0.5, lambda _: rows[:1], vocabulary_size=size)
