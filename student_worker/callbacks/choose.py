"""Which callbacks a recipe asks for."""

from __future__ import annotations

import importlib.util

from stillhouse.errors import ConfigurationError
from student_worker.cadence import Cadence
from student_worker.callbacks.base import Callback
from student_worker.callbacks.best import EarlyStopping
from student_worker.callbacks.lines import Lines
from student_worker.callbacks.load import callback_classes, make
from student_worker.callbacks.to_tensorboard import ToTensorBoard
from student_worker.callbacks.to_wandb import ToWandb
from student_worker.recipe.schema import Recipe
from student_worker.run_folder.journal import Journal

TRACKERS: dict[str, type[ToTensorBoard | ToWandb]] = {"tensorboard": ToTensorBoard, "wandb": ToWandb}


def check_callbacks(recipe: Recipe) -> None:
    """Refuse, before anything is written, what could not be called later.

    Raises:
        ConfigurationError: a tracker that is not installed, a callback that cannot be imported or is none.
    """
    for name in recipe.report_to:
        if importlib.util.find_spec(name) is None:
            raise ConfigurationError(
                f"report_to {name}: it is not installed: pip install 'stillhouse[{name}]', or leave it out"
            )
    callback_classes(recipe.callbacks)


def make_callbacks(recipe: Recipe, cadence: Cadence, *, evaluates: bool) -> list[Callback]:
    """Return what watches the run, in the order in which it is told: lines, early stopping, trackers, the user's own.

    Raises:
        ConfigurationError: a callback of the user's that cannot be made.
    """
    journal = Journal(recipe.output_dir)
    callbacks: list[Callback] = [Lines(journal, cadence)]
    if recipe.early_stopping_patience is not None and evaluates:
        patience, threshold = recipe.early_stopping_patience, recipe.early_stopping_threshold
        callbacks.append(EarlyStopping(recipe.metric_for_best_model, patience, threshold))
    callbacks += [TRACKERS[name](cadence, journal.progress) for name in recipe.report_to]
    return callbacks + [make(name) for name in recipe.callbacks]
