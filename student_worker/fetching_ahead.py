"""How many steps ahead of the training answers are fetched, where the recipe leaves it open.

What is computed is the same to the bit, however many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillhouse.channel import is_local
from stillhouse.request import TeacherDescription
from student_worker.recipe.schema import Recipe

if TYPE_CHECKING:
    import torch

PREFETCH_STEPS = 2
"""Enough for a teacher whose answer to one step takes longer than another step does."""


def prefetch_steps(recipe: Recipe, teacher: TeacherDescription, device: torch.device) -> int:
    """Return the recipe's number or, by default, `PREFETCH_STEPS`: 0 where teacher and student share processors.

    There is nothing to hide there: what the teacher computes meanwhile, the student waits for at every operation, since
    the threads of both have the same cores (`python -m benchmarks run training`: `same_box_over_sum`).
    """
    if recipe.prefetch_steps is not None:
        return recipe.prefetch_steps
    # A store reads ahead whoever fills its gaps.
    is_here = recipe.store is None and recipe.teacher is not None and is_local(recipe.teacher)
    # Of a model that is split over processes the kind is "cpu x 2".
    shares = is_here and device.type == "cpu" and teacher.device_kind.partition(" x ")[0] == "cpu"
    return 0 if shares else PREFETCH_STEPS
