"""Reverse KL and the generalised Jensen-Shannon divergence: their loss, their exact gradient, and what they bear."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from stillhouse.encodings import Candidates, Sampled, TopK
from stillhouse.errors import InvalidRequestError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.kd import (
    causal_lm_kd_loss,
    kd_logit_gradient,
    kd_loss,
    kd_loss_and_gradient,
    kd_step,
    kd_step_per_position,
)
from stillhouse.kd.divergences import DivergenceName
from stillhouse.payloads import DenseLogits, HiddenStates, OutputHead
from tests.unit.kd.cases import Case, cases

INF = math.inf
BETAS = [0.1, 0.3, 0.5, 0.7, 0.9]
V = 9


def published(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    """The GKD paper's loss of each row as TRL writes it: beta is the teacher's share, its ends are the two KLs."""
    student_log_probs = functional.log_softmax(student / temperature, -1)
    teacher_log_probs = functional.log_softmax(teacher / temperature, -1)
    if beta == 0:
        terms = functional.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True)
    elif beta == 1:
        terms = functional.kl_div(teacher_log_probs, student_log_probs, reduction="none", log_target=True)
    else:
        weight = torch.tensor(beta, dtype=student.dtype)
        mixture = torch.stack([student_log_probs + torch.log1p(-weight), teacher_log_probs + torch.log(weight)])
        mixture_log_probs = torch.logsumexp(mixture, 0)
        from_teacher = functional.kl_div(mixture_log_probs, teacher_log_probs, reduction="none", log_target=True)
        from_student = functional.kl_div(mixture_log_probs, student_log_probs, reduction="none", log_target=True)
        terms = beta * from_teacher + (1 - beta) * from_student
    return terms.sum(-1)


def reference(case: Case, beta: float) -> tuple[float, Tensor]:
    """The same in float64, with cross-entropy, averaged and left to autograd; -inf stands as a logit far below."""
    leaf = finite(case.student.double(), case.temperature).requires_grad_()
    teacher = finite(case.teacher.double(), case.temperature)
    kept, labelled = case.mask, case.mask & (case.labels != -100)
    loss = leaf[:, :0].sum()
    if bool(labelled.any()):
        loss = loss + case.alpha * functional.cross_entropy(leaf[labelled], case.labels[labelled])
    if bool(kept.any()):
        rows = published(leaf[kept], teacher[kept], beta, case.temperature)
        loss = loss + (1 - case.alpha) * case.temperature**2 * rows.mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient


def finite(logits: Tensor, temperature: float) -> Tensor:
    lowest = logits.amax(-1, keepdim=True) - 1e5 * max(1.0, temperature)
    return torch.where(logits == -INF, lowest, logits)


def turned(case: Case) -> Case:
    """Both sides change places: what the student rules out, its teacher may, and not the other way round."""
    ruled_out = case.teacher.gather(1, case.labels.clamp_min(0)[:, None])[:, 0] == -INF
    return replace(case, student=case.teacher, teacher=case.student, labels=case.labels.masked_fill(ruled_out, -100))


def check(case: Case, loss: DivergenceName, beta: float, rtol: float) -> None:
    expected, gradient = reference(case, 1.0 if loss == "reverse_kl" else beta)
    result = kd_loss_and_gradient(
        case.student,
        DenseLogits(case.teacher),
        case.labels,
        temperature=case.temperature,
        alpha=case.alpha,
        mask=case.mask,
        loss=loss,
        jsd_beta=beta,
    )
    assert result.loss == pytest.approx(expected, rel=rtol, abs=rtol * max(1.0, case.temperature**2))
    bound = max(1.0, case.temperature, float(gradient.abs().max()))
    assert float((result.gradient.double() - gradient).abs().max()) <= rtol * bound
    assert bool((result.gradient[~case.mask] == 0).all())


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_reverse_kl_equals_autograd_over_the_published_formula(
    dtype: torch.dtype, rtol: float, data: st.DataObject
) -> None:
    check(turned(data.draw(cases(dtype))), "reverse_kl", 0.5, rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
@given(data=st.data(), beta=st.sampled_from(BETAS), turn=st.booleans())
@settings(max_examples=100, deadline=None)
def test_jsd_equals_autograd_over_the_published_formula(
    dtype: torch.dtype, rtol: float, data: st.DataObject, beta: float, turn: bool
) -> None:
    case = data.draw(cases(dtype))
    check(turned(case) if turn else case, "jsd", beta, rtol)


def logits(rows: int = 4, width: int = V, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_gradient_passes_gradcheck(loss: DivergenceName, temperature: float) -> None:
    teacher, labels = logits(seed=1), torch.tensor([1, -100, 6, 0])
    assert torch.autograd.gradcheck(
        lambda s: kd_loss(s, teacher, labels, temperature=temperature, alpha=0.4, loss=loss, jsd_beta=0.3),
        (logits().requires_grad_(),),
    )


def value(loss: DivergenceName, student: Tensor, teacher: Tensor, beta: float = 0.5, temperature: float = 2.0) -> float:
    return kd_loss_and_gradient(
        student, teacher, None, temperature=temperature, alpha=0.0, loss=loss, jsd_beta=beta
    ).loss


def test_jsd_tends_to_either_kl_at_its_ends() -> None:
    student, teacher, small = logits(), logits(seed=1), 1e-7
    forward, reverse = value("forward_kl", student, teacher), value("reverse_kl", student, teacher)
    assert value("jsd", student, teacher, small) / small == pytest.approx(forward, rel=1e-4)
    assert value("jsd", student, teacher, 1 - small) / small == pytest.approx(reverse, rel=1e-4)
    assert abs(forward - reverse) > 1e-2 * forward


def test_the_divergences_are_turned_when_the_sides_change_places() -> None:
    student, teacher = logits(), logits(seed=1)
    assert value("reverse_kl", student, teacher) == pytest.approx(value("forward_kl", teacher, student), rel=1e-12)
    assert value("jsd", student, teacher, 0.2) == pytest.approx(value("jsd", teacher, student, 0.8), rel=1e-12)


@pytest.mark.parametrize("beta", [1e-12, 1e-7, 0.5, 1 - 1e-7, 1 - 1e-12])
def test_no_share_of_a_mixture_makes_float32_leave_the_numbers(beta: float) -> None:
    student, teacher = torch.tensor([[1e4, 0.0, -1e4, 3.0]]), torch.tensor([[-1e4, 1e4, -INF, 3.0]])
    for s, t in ((student, teacher), (teacher, student)):
        result = kd_loss_and_gradient(s, t, None, temperature=1.0, alpha=0.0, loss="jsd", jsd_beta=beta)
        # Of two sides that share no mass only the mixture's own entropy is left.
        expected = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
        assert result.loss == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert bool(result.gradient.isfinite().all())


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_logits_of_ten_thousand_have_a_finite_loss_and_no_clamp(loss: DivergenceName, temperature: float) -> None:
    student, teacher = torch.zeros(1, 2), torch.zeros(1, 2)
    student[0, 0], teacher[0, 1] = 1e4, 1e4
    result = kd_loss_and_gradient(student, teacher, [1], temperature=temperature, alpha=0.5, loss=loss)
    expected = temperature * 1e4 if loss == "reverse_kl" else temperature**2 * math.log(2)
    assert result.kl == pytest.approx(expected)
    assert bool(result.gradient.isfinite().all())


@pytest.mark.parametrize("student_logit", [0.0, -1e4])
def test_reverse_kl_refuses_a_teacher_that_rules_out_what_the_student_does_not(student_logit: float) -> None:
    student, teacher = logits(), logits(seed=1)
    student[2, 4], teacher[2, 4] = student_logit, -INF
    with pytest.raises(ValueError, match=r"row 2 of the teacher's logits is -inf where the student's row 2 has mass"):
        value("reverse_kl", student, teacher)
    with pytest.raises(ValueError, match=r"is infinite; use loss='forward_kl' or 'jsd'"):
        value("reverse_kl", student.float(), teacher.float(), temperature=1.0)
    assert math.isfinite(value("forward_kl", student, teacher))
    assert math.isfinite(value("jsd", student, teacher))


def test_what_the_student_rules_out_costs_reverse_kl_nothing_and_jsd_little() -> None:
    student, teacher = logits(), logits(seed=1)
    student[:, 5] = -INF
    almost = student.clone()
    almost[:, 5] = -1e4
    for loss in ("reverse_kl", "jsd"):
        options: dict[str, Any] = {"temperature": 2.0, "alpha": 0.0, "loss": loss}
        result = kd_loss_and_gradient(student, teacher, None, **options)
        assert result.loss == pytest.approx(value(loss, almost, teacher), rel=1e-9)
        assert float(result.gradient[:, 5].abs().max()) == 0.0


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("bad", [[math.nan], [INF], [-INF] * V])
def test_a_row_without_a_softmax_is_refused_and_named(loss: DivergenceName, side: str, bad: list[float]) -> None:
    student, teacher = logits(), logits(seed=1)
    (student if side == "student" else teacher)[1, : len(bad)] = torch.tensor(bad, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"row 1 of the {side}'s logits has no finite log-normaliser"):
        value(loss, student, teacher)


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
def test_kdstep_002_a_student_equal_to_its_teacher_has_no_gradient(loss: DivergenceName) -> None:
    def agree(input_ids: Any) -> Tensor:
        payloads = FixtureTeacher(V).logits(input_ids)
        return torch.stack([payload.logits[-1] for payload in payloads if isinstance(payload, DenseLogits)])

    got, gradient = kd_step(FixtureTeacher(V), [[1, 2], [3]], [2, 9 - 1], 2.0, 0.0, agree, loss=loss)
    assert isinstance(gradient, Tensor)
    assert abs(got) < 1e-6
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
def test_kdstep_003_the_loss_grows_as_the_student_moves_away(loss: DivergenceName) -> None:
    teacher, away = logits(seed=1).float(), logits(seed=2).float()
    losses = [value(loss, teacher + by * away, teacher) for by in (0.0, 0.01, 0.1, 0.5, 1.0)]
    assert losses == sorted(losses)
    assert abs(losses[0]) < 1e-6 < losses[1]


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
def test_every_form_of_the_loss_computes_the_same_divergence(loss: DivergenceName) -> None:
    ids, labels, targets = [[1, 2, 3], [4, 5, 6]], [[2, 3, 4], [5, 6, 7]], [2, 3, 4, 5, 6, 7]
    students = [logits(3, seed=1).float(), logits(3, seed=2).float()]
    rows, teacher = torch.cat(students), FixtureTeacher(V)
    payloads = teacher.logits(ids)
    dense = torch.cat([payload.logits for payload in payloads if isinstance(payload, DenseLogits)])
    options: dict[str, Any] = {"loss": loss, "jsd_beta": 0.3}
    whole = kd_loss_and_gradient(rows, dense, targets, temperature=2.0, alpha=0.4, **options)
    step, gradients = kd_step_per_position(teacher, ids, labels, 2.0, 0.4, lambda _: students, **options)
    assert step == pytest.approx(whole.loss, rel=1e-6)
    torch.testing.assert_close(torch.cat(gradients) / 6, whole.gradient)
    alone = kd_logit_gradient(rows, dense, targets, temperature=2.0, alpha=0.4, **options)
    torch.testing.assert_close(alone / 6, whole.gradient)
    batch = causal_lm_kd_loss(
        torch.stack(students),
        payloads,
        torch.tensor([[1, 2, 3], [4, 5, 6]]),
        attention_mask=None,
        temperature=2.0,
        alpha=0.0,
        **options,
    )
    shifted = torch.cat([dense[0:2], dense[3:5]])
    expected = kd_loss_and_gradient(
        torch.cat([rows[0:2], rows[3:5]]), shifted, None, temperature=2.0, alpha=0.0, **options
    )
    assert float(batch) == pytest.approx(expected.loss, rel=1e-6)
    last, _ = kd_step(teacher, ids, [4, 7], 2.0, 0.4, lambda _: torch.stack([s[-1] for s in students]), **options)
    ends = kd_loss_and_gradient(rows[2::3], dense[2::3], [4, 7], temperature=2.0, alpha=0.4, **options)
    assert last == pytest.approx(ends.loss, rel=1e-6)


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
def test_hidden_states_teach_what_their_logits_do(loss: DivergenceName) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 5, generator=generator), torch.randn(V, 5, generator=generator)
    options: dict[str, Any] = {"temperature": 3.0, "alpha": 0.2, "loss": loss}
    student = logits().float()
    got = kd_loss_and_gradient(student, HiddenStates(hidden), [1, 2, 3, 4], output_head=OutputHead(weight), **options)
    plain = kd_loss_and_gradient(student, hidden @ weight.T, [1, 2, 3, 4], **options)
    assert got.loss == pytest.approx(plain.loss, rel=1e-6)
    torch.testing.assert_close(got.gradient, plain.gradient)


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
@pytest.mark.parametrize("encoding", [TopK(3), Sampled(5), Candidates((1, 2))])
def test_an_answer_that_tells_a_part_is_refused_by_name_before_anybody_is_asked(
    loss: DivergenceName, encoding: Any
) -> None:
    teacher = FixtureTeacher(V)
    words = rf"loss is '{loss}', which needs the teacher's whole distribution, and \w+ tells only part.*Dense\(\) or"
    with pytest.raises(InvalidRequestError, match=words):
        kd_step(teacher, [[1]], [1], 1.0, 0.5, lambda _: pytest.fail("was run"), encoding=encoding, loss=loss)
    with pytest.raises(InvalidRequestError, match=words):
        kd_step_per_position(
            teacher, [[1]], [[1]], 1.0, 0.5, lambda _: pytest.fail("was run"), encoding=encoding, loss=loss
        )
    (payload,) = teacher.logits([[1, 2]], encoding=encoding)
    with pytest.raises(InvalidRequestError, match=words):
        kd_loss_and_gradient(logits(2), payload, None, temperature=1.0, alpha=0.5, loss=loss)
    for answers in ([payload], teacher):
        with pytest.raises(InvalidRequestError, match=words):
            causal_lm_kd_loss(
                logits(2).unsqueeze(0),
                answers,
                torch.tensor([[1, 2]]),
                input_ids=torch.tensor([[1, 2]]),
                attention_mask=None,
                temperature=1.0,
                alpha=0.5,
                encoding=encoding,
                loss=loss,
            )


@pytest.mark.parametrize("beta", [0, 1, 0.0, 1.0, -0.1, 1.1, math.nan, True, "0.5", None])
def test_a_share_that_is_none_of_a_mixture_is_refused(beta: Any) -> None:
    with pytest.raises(InvalidRequestError, match="jsd_beta, the teacher's share of the mixture, must be above 0"):
        value("jsd", logits(), logits(seed=1), beta)


def test_another_loss_is_refused_and_those_that_there_are_named() -> None:
    wrong: Any = "kl"
    with pytest.raises(InvalidRequestError, match="loss must be forward_kl, reverse_kl or jsd; got 'kl'"):
        value(wrong, logits(), logits(seed=1))


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
def test_many_chunks_of_masked_rows_come_out_as_one(loss: DivergenceName) -> None:
    rows, width = 20, 60_000  # two rows to a chunk
    student, teacher = logits(rows, width).float(), logits(rows, width, seed=1).float()
    labels = torch.randint(0, width, (rows,), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(rows) % 3 != 1
    case = Case(student, teacher, labels, mask, 2.0, 0.5)
    check(case, loss, 0.7, 1e-6)
