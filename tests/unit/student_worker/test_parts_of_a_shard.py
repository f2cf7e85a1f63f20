"""BATCH-006 for a micro-shard: in however many forward passes, its gradient is that of one, and of the global batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stillhouse.kd.divergences import DivergenceName
from stillhouse.payloads import DenseLogits
from student_worker.batches import Batch, count
from student_worker.shard_step import Objective, ShardLoss, shard_gradient, shard_seed
from student_worker.students.base import ModelCard, Student

V, D = 20, 8


class TinyStudent(Student):
    """A recurrent network, so that a row depends on those before it."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.ModuleDict(
                {"in": nn.Embedding(V, D), "body": nn.GRU(D, D, batch_first=True), "drop": nn.Dropout(dropout)}
                | {"out": nn.Linear(D, V)}
            ),
            0.1,
        )
        self.batch_sizes: list[int] = []

    @property
    def vocabulary_size(self) -> int:
        return V

    def row_states(self, batch: Batch) -> Tensor:
        self.batch_sizes.append(len(batch.input_ids))
        modules: Any = self.module
        states, _ = modules["body"](modules["in"](batch.input_ids))
        dropped: Tensor = modules["drop"](states).flatten(0, 1)[batch.rows]
        return dropped

    def head(self, states: Tensor) -> Tensor:
        modules: Any = self.module
        logits: Tensor = modules["out"](states)
        return logits

    def export(self, folder: Any, card: ModelCard) -> None:
        raise AssertionError(f"not exported here: {folder}, {card}")


def answers(samples: list[Any]) -> list[DenseLogits]:
    generator = torch.Generator().manual_seed(1)
    rows = [3 * torch.randn(int(sample.mask.sum()), V, generator=generator) for sample in samples]
    return [DenseLogits(logits) for logits in rows if len(logits)]


def gradient_of(
    student: TinyStudent,
    samples: list[Any],
    part_size: int | None,
    *,
    loss: DivergenceName = "forward_kl",
    key: tuple[int, int] = (3, 1),
) -> tuple[Tensor, ShardLoss]:
    """The shard is a part of a larger global batch, which `counts` tells."""
    student.module.zero_grad()
    objective = Objective(2.0, 0.4, V, loss=loss, jsd_beta=0.3)
    counts = count([*samples, *samples])
    result = shard_gradient(student, samples, answers(samples), objective, counts, seed=5, key=key, part_size=part_size)
    parts = [
        p.grad.reshape(-1) if p.grad is not None else p.detach().reshape(-1) * 0 for p in student.module.parameters()
    ]
    return torch.cat(parts), result


@pytest.fixture
def shard(dataset: Any) -> list[Any]:
    """Samples of differing lengths, masks and labels, one of which has no row at all."""
    samples = list(dataset.samples[:7])
    sample = samples[2]
    samples[2] = type(sample)(sample.token_ids, sample.labels, sample.mask & False, sample.segment_lengths)
    return samples


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("part_size", [1, 2, 3, 6, 7, 100])
def test_batch_006_parts_add_up_to_the_gradient_of_the_whole_shard(
    shard: list[Any], part_size: int, loss: DivergenceName
) -> None:
    whole, once = gradient_of(TinyStudent(), shard, None, loss=loss)
    parts, added = gradient_of(TinyStudent(), shard, part_size, loss=loss)
    assert float((parts - whole).norm()) <= 1e-4 * float(whole.norm())
    assert added.loss == pytest.approx(once.loss, rel=1e-5)
    assert (added.cross_entropy, added.kl) == pytest.approx((once.cross_entropy, once.kl), rel=1e-5)


@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_batch_006_any_samples_in_any_parts(cuts: list[int], seed: int) -> None:
    import numpy as np

    from stillhouse.data import Sample

    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(sum(cuts)):
        length = int(generator.integers(2, 9))
        labels = generator.integers(0, V, length).astype(np.int64)
        labels[generator.random(length) < 0.4] = -100
        ids = generator.integers(0, V, length).astype(np.uint32)
        samples.append(Sample(ids, labels, generator.random(length) < 0.7, (length,)))
    whole, once = gradient_of(TinyStudent(), samples, None)
    parts, added = gradient_of(TinyStudent(), samples, max(cuts))
    assert float((parts - whole).norm()) <= 1e-4 * float(whole.norm())
    assert added.loss == pytest.approx(once.loss, rel=1e-5, abs=1e-9)


def test_no_forward_pass_holds_more_samples_than_asked(shard: list[Any]) -> None:
    student = TinyStudent()
    gradient_of(student, shard, 2)
    assert student.batch_sizes == [2, 1 + 1, 2, 1]


def test_each_part_draws_for_itself_and_the_same_whoever_computes_the_shard(shard: list[Any]) -> None:
    first, _ = gradient_of(TinyStudent(0.5), shard, 2)
    torch.manual_seed(99)
    again, _ = gradient_of(TinyStudent(0.5), shard, 2)
    assert torch.equal(first, again)
    other, _ = gradient_of(TinyStudent(0.5), shard, 2, key=(3, 2))
    assert not torch.equal(first, other)
    seeds = {shard_seed(5, step, m, part) for step in range(4) for m in range(4) for part in range(4)}
    assert len(seeds) == 64


def test_an_answer_too_many_is_refused(shard: list[Any]) -> None:
    given = [*answers(shard), *answers(shard[:1])]
    with pytest.raises(ValueError, match="came with 7 answers"):
        shard_gradient(
            TinyStudent(), shard, given, Objective(1.0, 0.5, V), count(shard), seed=0, key=(0, 0), part_size=2
        )
