"""How many steps a run has, and how many tokens they read: from steps, passes over the data, or tokens.

A pure function of the recipe and the order of the data, so that every worker comes to the same number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stillhouse.data import Order
from student_worker.corpus import Samples
from student_worker.recipe.schema import Recipe


def num_steps(recipe: Recipe, data: Samples, order: Order) -> int:
    """Return the steps of a run; with `max_tokens`, the one that reaches them is the last."""
    size = recipe.global_batch_size
    if recipe.max_steps is not None:
        return recipe.max_steps
    if recipe.max_tokens is not None:
        return -(-_samples_for(recipe.max_tokens, data.sample_lengths(), order) // size)
    samples = (recipe.num_train_epochs or 1.0) * len(data)
    return max(1, -int(-samples // size))


def num_tokens(steps: int, recipe: Recipe, data: Samples, order: Order) -> int:
    """Return how many tokens so many steps read."""
    lengths = data.sample_lengths()
    epochs, rest = divmod(steps * recipe.global_batch_size, len(lengths))
    last = lengths[order.sample_ids(epochs * len(lengths), rest)]
    return epochs * int(lengths.sum()) + int(last.sum())


def _samples_for(tokens: int, lengths: NDArray[np.int64], order: Order) -> int:
    """Return how many samples, in the run's order, hold so many tokens (at least 1): the last of them reaches it."""
    epochs, rest = divmod(tokens - 1, int(lengths.sum()))
    begun = epochs * len(lengths)
    reached = np.cumsum(lengths[order.sample_ids(begun, len(lengths))])
    return begun + int(np.searchsorted(reached, rest, side="right")) + 1
