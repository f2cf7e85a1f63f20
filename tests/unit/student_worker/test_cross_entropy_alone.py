"""With alpha 1 a micro-shard is learnt from its labels alone: the same bits, and nobody is asked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from stillhouse.payloads import DenseLogits
from student_worker.batches import count
from student_worker.shard_step import Objective, ShardLoss, shard_gradient
from student_worker.students.fixture import FixtureTrainee

N = 9


def gradient(samples: list[Any], payloads: list[DenseLogits], part_size: int | None) -> tuple[torch.Tensor, ShardLoss]:
    student = FixtureTrainee(N, 0.5)
    loss = shard_gradient(
        student, samples, payloads, Objective(2.0, 1.0, N), count(samples), seed=0, key=(0, 0), part_size=part_size
    )
    (parameter,) = student.module.parameters()
    assert parameter.grad is not None
    return parameter.grad, loss


@pytest.mark.parametrize("part_size", [None, 1, 2])
def test_alpha_one_needs_no_answers_and_moves_the_weights_alike(make_sample: Any, part_size: int | None) -> None:
    samples = [make_sample([1, 2, 3, 4]), make_sample([5, 6, 7], masked=(0, 1)), make_sample([8, 1, 1])]
    answers = [DenseLogits(torch.randn(int(sample.mask.sum()), N)) for sample in samples if sample.mask.any()]
    asked, beside = gradient(samples, answers, part_size)
    alone, loss = gradient(samples, [], part_size)
    assert torch.equal(alone, asked)
    assert loss.loss == beside.loss == loss.cross_entropy
    assert math.isnan(loss.kl)


def test_below_one_an_answer_that_is_missing_is_refused(make_sample: Any) -> None:
    samples = [make_sample([1, 2, 3, 4])]
    with pytest.raises(ValueError, match="1 samples that are learnt from came with 0 answers"):
        shard_gradient(FixtureTrainee(N, 0.5), samples, [], Objective(1.0, 0.99, N), count(samples), seed=0, key=(0, 0))
