"""The loss over named ids: head and one bucket, as for top-k, whether the ids are shared or differ by position."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillhouse.encode import encode_logits
from stillhouse.encodings import Candidates
from stillhouse.kd import kd_loss_and_gradient
from stillhouse.payloads import CandidateLogits
from stillhouse.request import All, Sequence
from tests.unit.kd.conftest import naive_loss_and_gradient

pytestmark = pytest.mark.usefixtures("each_kernel")

V, ROWS = 23, 5


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(ROWS, V, generator=torch.Generator().manual_seed(seed))


def candidates(teacher: Tensor, rows: list[list[int]] | list[int], temperature: float) -> CandidateLogits:
    shared = tuple(i for i in rows if isinstance(i, int))
    own = tuple(tuple(ids) for ids in rows if isinstance(ids, list))
    sequence = Sequence(tuple(range(ROWS)), positions=All(), candidate_ids=own)
    payload = encode_logits(
        [teacher], Candidates(shared), sequence=sequence, temperature=temperature, vocabulary_size=V
    )
    assert isinstance(payload, CandidateLogits)
    return payload


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("ids", [[2, 3, 11], [[0, 9], [1, 2], [7, 22], [4, 5], [3, 20]]])
def test_loss_and_gradient_are_those_of_named_ids_and_one_bucket(
    ids: list[list[int]] | list[int], temperature: float
) -> None:
    teacher, student = logits(1), logits(2)
    labels = torch.tensor([1, -100, 5, 22, 0])
    payload = candidates(teacher, ids, temperature)
    wanted, gradient = naive_loss_and_gradient(
        student,
        teacher,
        labels,
        temperature=temperature,
        alpha=0.3,
        head_ids=torch.tensor(ids).expand(ROWS, -1),
    )
    result = kd_loss_and_gradient(student.double(), payload, labels, temperature=temperature, alpha=0.3)
    assert result.loss == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(result.gradient, gradient, atol=1e-6, rtol=1e-5)


def test_without_the_tail_the_teacher_is_scaled_to_the_named_ids() -> None:
    teacher, student = logits(1), logits(2).double()
    payload = candidates(teacher, [2, 3, 11], 1.0)
    result = kd_loss_and_gradient(student, payload, temperature=1.0, alpha=0.0, top_k_tail="renormalise")
    p = torch.log_softmax(teacher[:, [2, 3, 11]].double(), -1)
    q = torch.log_softmax(student, -1)[:, [2, 3, 11]]
    assert result.loss == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)


def test_log_probabilities_are_those_of_the_whole_vocabulary() -> None:
    teacher = logits(1)
    payload = candidates(teacher, [[0], [9], [1], [2], [22]], 2.0)
    wanted = torch.log_softmax(teacher.double(), -1).gather(1, payload.token_ids.long())
    torch.testing.assert_close(payload.log_probs.double(), wanted, atol=1e-5, rtol=0)
    tempered = torch.log_softmax(teacher.double() / 2, -1).gather(1, payload.token_ids.long())
    torch.testing.assert_close(payload.tempered_log_probs.double(), tempered, atol=1e-5, rtol=0)


def test_named_ids_that_the_teacher_all_rules_out_leave_everything_to_the_bucket() -> None:
    teacher, student = logits(1), logits(2).double()
    teacher[0, [2, 3]] = -torch.inf
    payload = candidates(teacher, [2, 3], 1.0)
    result = kd_loss_and_gradient(student, payload, temperature=1.0, alpha=0.0)
    wanted, gradient = naive_loss_and_gradient(
        student, teacher, torch.full((ROWS,), -100), temperature=1.0, alpha=0.0, head_ids=torch.tensor([[2, 3]] * ROWS)
    )
    assert result.loss == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(result.gradient, gradient, atol=1e-6, rtol=1e-5)
