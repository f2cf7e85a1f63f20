"""What a run and its plan are refused for before a teacher is asked, or waited for."""

from __future__ import annotations

from stillhouse.data.preparation import check_sources
from student_worker import assemble
from student_worker.callbacks.choose import check_callbacks
from student_worker.recipe.schema import Recipe


def check_beforehand(recipe: Recipe) -> None:
    """Refuse what the recipe and this machine alone show to be wrong.

    Raises:
        StillhouseError: a group that cannot be joined, a callback that is not to be had, or sources that are not there.
    """
    assemble.check_group(recipe)
    check_callbacks(recipe)
    check_sources(recipe.data)
