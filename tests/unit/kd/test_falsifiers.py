"""Statements that must stay true of distillation here, each under its own name."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, pairwise

import torch
from torch import Tensor

from stillhouse.fixtures import FixtureStudent, FixtureTeacher
from stillhouse.kd import kd_logit_gradient, kd_loss_and_gradient, kd_step, kd_step_per_position
from stillhouse.payloads import DenseLogits
from stillhouse.providers import Answer, TokenBatch
from stillhouse.request import LogitsRequest

V = 11
BATCH = [[1, 2, 3], [4], [5, 6, 7, 8]]
LABELS = [2, 9, 0]


def random_logits(rows: int = 6, width: int = V, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


class CountingTeacher(FixtureTeacher):
    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.requests: list[LogitsRequest] = []

    def answer(self, request: LogitsRequest) -> Answer:
        self.requests.append(request)
        return super().answer(request)


def given(logits: Tensor) -> Callable[[TokenBatch], Tensor]:
    return lambda _: logits


def agree(input_ids: TokenBatch) -> Tensor:
    payloads = FixtureTeacher(V).logits(input_ids)
    return torch.stack([payload.logits[-1] for payload in payloads if isinstance(payload, DenseLogits)])


def agree_per_position(input_ids: TokenBatch) -> list[Tensor]:
    return [payload.logits for payload in FixtureTeacher(V).logits(input_ids) if isinstance(payload, DenseLogits)]


def test_kdstep_001_alpha_one_is_the_plain_cross_entropy_gradient() -> None:
    student = random_logits(len(BATCH))
    _, gradient = kd_step(FixtureTeacher(V), BATCH, LABELS, 2.0, 1.0, lambda _: student)
    one_hot = torch.nn.functional.one_hot(torch.tensor(LABELS), V)
    assert isinstance(gradient, Tensor)
    torch.testing.assert_close(gradient, torch.softmax(student, -1) - one_hot, atol=1e-6, rtol=0)


def test_kdstep_002_a_student_equal_to_its_teacher_has_no_gradient() -> None:
    loss, gradient = kd_step(FixtureTeacher(V), BATCH, LABELS, 2.0, 0.0, agree)
    assert isinstance(gradient, Tensor)
    assert abs(loss) < 1e-6
    assert gradient.abs().max() < 1e-6


def test_kdstep_003_the_loss_grows_as_the_student_moves_away() -> None:
    away = random_logits(len(BATCH), seed=1)
    students = [agree(BATCH) + by * away for by in (0.0, 0.1, 0.5, 1.0, 2.0)]
    losses = [kd_step(FixtureTeacher(V), BATCH, LABELS, 2.0, 0.0, given(student))[0] for student in students]
    assert losses == sorted(losses)
    assert losses[0] < losses[1] < losses[-1]


def test_forward_kl_001_is_t_squared_times_the_forward_divergence_and_not_the_reverse() -> None:
    student, teacher, temperature = random_logits(seed=2), random_logits(seed=3), 2.5
    p, q = torch.softmax(teacher.double() / temperature, -1), torch.softmax(student.double() / temperature, -1)
    forward = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    reverse = temperature**2 * (q * (q / p).log()).sum(-1).mean()
    result = kd_loss_and_gradient(student, teacher, None, temperature=temperature, alpha=0.0)
    assert abs(result.loss - forward) < 1e-5
    assert abs(result.loss - reverse) > 1e-2


def test_student_001_one_step_raises_the_logit_of_the_token_that_the_teacher_prefers() -> None:
    student = FixtureStudent(V, 0.0, 0.5)
    _, gradients = kd_step(FixtureTeacher(V), [[1, 2, 7]], [0], 2.0, 0.0, student.compute_logits)
    student.apply_gradients(gradients)
    assert student.row[7] > 0
    assert student.row.argmax() == 7


def test_student_002_ten_steps_strictly_decrease_the_loss_to_below_nine_tenths() -> None:
    student, losses = FixtureStudent(V, 0.0, 0.5), []
    for _ in range(10):
        loss, gradients = kd_step(FixtureTeacher(V), BATCH, LABELS, 4.0, 0.0, student.compute_logits)
        student.apply_gradients(gradients)
        losses.append(loss)
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


def test_perpos_001_a_batch_of_b_sequences_of_l_ids_trains_on_b_times_l_predictions() -> None:
    teacher, batch, labels = CountingTeacher(V), [[1, 2, 3, 4], [5, 6, 7, 8]], [[2, 3, 4, 5], [6, 7, 8, 9]]
    students = [random_logits(4, seed=seed) for seed in (4, 5)]
    loss, gradients = kd_step_per_position(teacher, batch, labels, 2.0, 0.3, lambda _: students)
    assert [g.shape for g in gradients] == [(4, V), (4, V)]
    assert all(bool((row != 0).any()) for gradient in gradients for row in gradient)
    whole = kd_loss_and_gradient(
        torch.cat(students), torch.cat(agree_per_position(batch)), list(chain(*labels)), temperature=2.0, alpha=0.3
    )
    assert abs(loss - whole.loss) < 1e-6
    torch.testing.assert_close(torch.cat(gradients) / 8, whole.gradient)
    assert [request.num_positions for request in teacher.requests] == [8]


def test_perpos_002_ragged_lengths_are_averaged_over_positions_and_not_over_sequences() -> None:
    students = [random_logits(len(ids), seed=len(ids)) for ids in BATCH]
    labels = [[-100] * len(ids) for ids in BATCH]
    loss, gradients = kd_step_per_position(FixtureTeacher(V), BATCH, labels, 1.5, 0.0, lambda _: students)
    teacher = torch.cat(agree_per_position(BATCH))
    whole = kd_loss_and_gradient(torch.cat(students), teacher, None, temperature=1.5, alpha=0.0)
    assert whole.num_valid == sum(len(ids) for ids in BATCH)
    assert abs(loss - whole.loss) < 1e-6
    torch.testing.assert_close(torch.cat(gradients) / whole.num_valid, whole.gradient)


def test_perpos_003_there_is_no_gradient_at_agreement() -> None:
    labels = [[-100] * len(ids) for ids in BATCH]
    loss, gradients = kd_step_per_position(FixtureTeacher(V), BATCH, labels, 3.0, 0.0, agree_per_position)
    assert abs(loss) < 1e-6
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6


def test_perpos_004_masked_positions_count_in_neither_term() -> None:
    students = [random_logits(len(ids), seed=len(ids)) for ids in BATCH]
    labels: list[list[int]] = [[1] * len(ids) for ids in BATCH]
    masks = [[True, False, True], [False], [True, True, False, False]]
    loss, gradients = kd_step_per_position(FixtureTeacher(V), BATCH, labels, 2.0, 0.5, lambda _: students, masks=masks)
    kept = torch.tensor(list(chain(*masks)))
    whole = kd_loss_and_gradient(
        torch.cat(students)[kept], torch.cat(agree_per_position(BATCH))[kept], [1] * 4, temperature=2.0, alpha=0.5
    )
    assert abs(loss - whole.loss) < 1e-6
    assert torch.cat(gradients)[~kept].abs().max() == 0
    torch.testing.assert_close(torch.cat(gradients)[kept] / 4, whole.gradient)


def test_perpos_005_every_position_is_taught_by_the_teachers_row_at_that_position() -> None:
    ids = [[1, 2, 3, 4]]
    _, (gradient,) = kd_step_per_position(FixtureTeacher(V), ids, [[-100] * 4], 1.0, 0.0, lambda _: [torch.zeros(4, V)])
    assert gradient.argmin(-1).tolist() == [2, 3, 4, 4]


def test_the_teacher_is_asked_once_for_the_batch_at_the_last_positions() -> None:
    teacher = CountingTeacher(V)
    kd_step(teacher, BATCH, LABELS, 2.0, 0.5, lambda _: random_logits(3))
    assert len(teacher.requests) == 1
    assert teacher.requests[0].num_positions == 3


def test_an_empty_batch_costs_nothing_and_asks_nobody() -> None:
    teacher = CountingTeacher(V)
    assert kd_step(teacher, [], [], 2.0, 0.5, lambda _: random_logits(0)) == (0.0, [])
    assert kd_step_per_position(teacher, [], [], 2.0, 0.5, lambda _: []) == (0.0, [])
    assert teacher.requests == []


def test_cross_entropy_rows_are_scaled_so_that_dividing_by_valid_rows_gives_the_derivative() -> None:
    student = random_logits(len(BATCH))
    loss, gradient = kd_step(FixtureTeacher(V), BATCH, [2, -100, -100], 2.0, 0.4, lambda _: student)
    averaged = kd_loss_and_gradient(student, agree(BATCH), [2, -100, -100], temperature=2.0, alpha=0.4)
    assert (averaged.num_valid, averaged.num_labelled) == (3, 1)
    assert isinstance(gradient, Tensor)
    assert loss == averaged.loss
    torch.testing.assert_close(gradient / 3, averaged.gradient)
    torch.testing.assert_close(
        kd_logit_gradient(student, agree(BATCH), [2, -100, -100], temperature=2.0, alpha=0.4), gradient
    )
