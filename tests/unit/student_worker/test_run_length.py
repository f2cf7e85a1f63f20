"""A run's steps follow from steps, passes or tokens, and add up with what the steps then read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.data import Order, PackedDataset
from student_worker.recipe.run_length import num_steps, num_tokens
from student_worker.recipe.schema import Recipe
from student_worker.recipe.sources import load_recipe


class Lengths(PackedDataset):
    """As much of a dataset as is looked at: the lengths of its samples."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._lengths)

    def sample_lengths(self) -> Any:
        return self._lengths


def recipe(**flags: Any) -> Recipe:
    base = {"teacher": "a:1", "data": ["x"], "output_dir": "r", "keep_layers": "0", "micro_shards": "1"}
    return load_recipe(None, {**base, **flags}, {})


@pytest.mark.parametrize(("flags", "steps"), [({}, 13), ({"num_train_epochs": "2"}, 25), ({"max_steps": "7"}, 7)])
def test_steps_follow_from_epochs_or_are_given(flags: dict[str, str], steps: int) -> None:
    data = Lengths([4] * 100)
    assert num_steps(recipe(**flags), data, Order(100, 42, "f")) == steps


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    size=st.integers(1, 5),
    tokens=st.integers(1, 300),
    seed=st.integers(0, 9),
)
def test_the_step_that_reaches_max_tokens_is_the_last(lengths: list[int], size: int, tokens: int, seed: int) -> None:
    data, order = Lengths(lengths), Order(len(lengths), seed, "f")
    chosen = recipe(max_tokens=tokens, global_batch_size=size)
    steps = num_steps(chosen, data, order)
    counted = [int(data.sample_lengths()[order.sample_ids(0, step * size)].sum()) for step in (steps - 1, steps)]
    assert counted[0] < tokens <= counted[1]
    assert num_tokens(steps, chosen, data, order) == counted[1]
