"""VOCAB: a student whose embedding and head are padded, larger or smaller than what it shares with its teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.data import Sample
from stillhouse.errors import DataError
from stillhouse.payloads import DenseLogits
from stillhouse.vocabulary import check_token_ids, shared_vocabulary
from student_worker.batches import count, make_batch
from student_worker.shard_step import Objective, ShardLoss, backward
from student_worker.students.causal_lm import CausalLMStudent
from tests.tiny_models import tiny_model

N = 20


def student(size: int, *, tied: bool) -> CausalLMStudent:
    """Return a student whose first N ids have the same weights whatever its size; padding is far from silent."""
    model = tiny_model("llama", tied=tied, vocab_size=size)
    with torch.no_grad():
        for name, tensor in tiny_model("llama", tied=tied, vocab_size=N).named_parameters():
            own = model.get_parameter(name)
            if own.shape != tensor.shape:
                own.fill_(3.0)
            own[: len(tensor)] = tensor
    return CausalLMStudent(model)


def learn(made: CausalLMStudent, samples: list[Sample]) -> tuple[ShardLoss, dict[str, Tensor]]:
    counts = count(samples)
    teacher = torch.randn(counts.num_valid, N, generator=torch.Generator().manual_seed(1))
    objective = Objective(temperature=2.0, alpha=0.4, vocabulary_size=N)
    loss = backward(made, make_batch(samples), (DenseLogits(teacher),), objective, counts, seed=0)
    return loss, {name: p.grad for name, p in made.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", [N + 1, 64])
def test_vocab_a_padded_student_learns_as_one_that_is_not(
    size: int, tied: bool, make_sample: Callable[..., Sample]
) -> None:
    samples = [make_sample([1, 5, 9, 2, 19]), make_sample([3, 4, 18], masked=(0,))]
    exact_loss, exact = learn(student(N, tied=tied), samples)
    loss, padded = learn(student(size, tied=tied), samples)
    assert loss.loss == pytest.approx(exact_loss.loss, rel=1e-6)
    assert exact.keys() == padded.keys()
    for name, gradient in exact.items():
        torch.testing.assert_close(padded[name][: len(gradient)], gradient, rtol=1e-4, atol=1e-7)
        assert not padded[name][len(gradient) :].any(), f"what pads {name} was moved"


def test_vocab_a_smaller_student_shares_its_own_ids_only() -> None:
    tokens = [f"t{index}" for index in range(N)]
    assert shared_vocabulary(tokens, tokens, teacher_head_size=32, student_head_size=12) == 12
    check_token_ids(11, 12)
    with pytest.raises(DataError, match="token id 12, but teacher and student share only the ids below 12"):
        check_token_ids(12, 12)


def test_vocab_a_students_width_is_that_of_its_head() -> None:
    made: Any = student(64, tied=False)
    assert made.vocabulary_size == 64
    assert made.compute_logits([[1, 2]]).shape == (1, 64)
