"""The checkpoints of one worker's run: what the trainer has written, and what a run is resumed and exported from.

Knows nothing of when to save or who does; how checkpoints are kept is in `student_worker.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog

from stillhouse.errors import CheckpointError, ConfigurationError
from student_worker.callbacks.best import Best
from student_worker.checkpoints import CheckpointStore
from student_worker.recipe.schema import Recipe
from student_worker.state import WorkerState

_log = structlog.get_logger(__name__)


def open_store(recipe: Recipe) -> CheckpointStore:
    """Return where the recipe's checkpoints are.

    Raises:
        ConfigurationError: an address that cannot be used.
    """
    return CheckpointStore(recipe.checkpoint_dir or recipe.output_dir, recipe.save_total_limit)


def check_checkpoints(recipe: Recipe) -> None:
    """Refuse a place that holds checkpoints which nobody asked to go on from; nothing is written there.

    Raises:
        ConfigurationError: it does, or it is an address that cannot be used.
    """
    if not goes_on(recipe):
        _refuse_any(open_store(recipe))


def goes_on(recipe: Recipe) -> bool:
    """Tell whether a run that was begun goes on: asked for, or understood among workers that meet."""
    return recipe.resume or recipe.lighthouse is not None


def _refuse_any(store: CheckpointStore) -> None:
    if (step := store.latest()) is not None:
        raise ConfigurationError(
            f"{store.place.path(step)} is there already: this would be a new run among another's checkpoints. Go on "
            "with it by --resume, or name another checkpoint_dir"
        )


class RunSaving:
    """Writes a run's checkpoints in the background, and reads them back.

    Args:
        store: where.
        state: what.
        metric: the name of the figure that the best is the best by; None where nothing is evaluated.
        background: whether the run goes on while a checkpoint is written.
        awaits_best: whether the best must be complete before the next step. Where other workers go on after this one is
            killed, what it had not written of an earlier step is lost, and with it the run's best weights.
    """

    def __init__(
        self,
        store: CheckpointStore,
        state: WorkerState,
        metric: str | None,
        *,
        background: bool = True,
        awaits_best: bool = False,
    ) -> None:
        self._store = store
        self._state = state
        self._metric = metric
        self._background = background
        self._awaits_best = awaits_best
        self._saved: int | None = None
        self._saved_as_best = False

    def resume(self, *, goes_on: bool) -> None:
        """Load the newest sound checkpoint into the state, if there is one.

        Args:
            goes_on: whether that is understood; otherwise there must be none.

        Raises:
            CheckpointError: all are damaged, or they are of another run.
            ConfigurationError: the place cannot be written, or holds checkpoints that nobody asked to go on from.
        """
        self._store.place.check_writable()
        if not goes_on:
            _refuse_any(self._store)
            return
        checkpoint = self._store.load()
        if checkpoint is None:
            return
        self._state.load(checkpoint.tensors, checkpoint.metadata)
        self._saved = self._state.step
        _log.info("resumed", checkpoint=checkpoint.path, step=checkpoint.step)
        if self._metric is not None:
            self._store.mend_best(self._metric)

    def save(self, best: Best | None = None, *, background: bool = True) -> None:
        """Write the weights as they are, unless this worker has done so; none are written of step 0.

        A checkpoint that was written before its evaluation (a stop came between) is written again if it is the best.

        Args:
            best: if these weights are the best so far, by what.
            background: whether to return before it is written, so that the weights can move. That takes the memory of a
                copy, for which there is no need where no step follows.

        Raises:
            CheckpointError: this checkpoint or one before it was refused.
        """
        step = self._state.step
        if step == 0 or (step == self._saved and (best is None or self._saved_as_best)):
            return
        tensors, metadata = self._state.state()
        marked = None if best is None else best.as_json()
        background = background and self._background and (best is None or not self._awaits_best)
        self._store.save(step, tensors, metadata, best=marked, background=background)
        self._saved, self._saved_as_best = step, best is not None

    def saved(self, *, wait: bool = False) -> Sequence[str]:
        """Return what has become complete since the last call; `wait` for what is under way.

        Raises:
            CheckpointError: a checkpoint could not be written.
        """
        paths = self._store.finish() if wait else self._store.finished()
        for path in paths:
            _log.info("checkpoint", path=path)
        return paths

    def close(self) -> None:
        """Wait for what is under way, and log it if it fails."""
        self._store.close()

    def best(self) -> dict[str, Any] | None:
        """Return the best so far: step, metric, value, checkpoint."""
        return self._store.best()

    def load_best(self) -> int:
        """Put the best weights into the module; return after which step they were. Without any the last ones stay.

        Raises:
            CheckpointError: they cannot be read.
        """
        best = self.best()
        if best is None:
            _log.warning("no_best_checkpoint", reason="nothing was evaluated after a step: the last weights stay")
            return self._state.step
        if best["step"] != self._state.step:
            try:
                checkpoint = self._store.place.read(best["step"])
            except CheckpointError as error:
                raise CheckpointError(
                    f"the best checkpoint cannot be exported: {error}. The run is complete: resume it without "
                    "load_best_model_at_end to export its last weights"
                ) from error
            self._state.load_weights(checkpoint.tensors)
        return int(best["step"])
