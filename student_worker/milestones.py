"""What is due between two steps: evaluations and checkpoints, and who is told of them.

Knows nothing of how a step is done.
"""

from __future__ import annotations

import time
from typing import Any

from stillhouse.errors import GuardError
from student_worker.callbacks.hooks import Hooks
from student_worker.evaluation.figures import Evaluation
from student_worker.parts import Outcome, Parts


class Milestones:
    """Evaluates and saves when it is time to, each once, whatever resumes and deaths come between.

    Args:
        parts: of the run.
        hooks: told of each.
        outcome: where each is noted.
        knows_first: whether it is known from the beginning who writes: a single worker does.
    """

    def __init__(self, parts: Parts, hooks: Hooks, outcome: Outcome, *, knows_first: bool) -> None:
        self._parts = parts
        self._hooks = hooks
        self._outcome = outcome
        self._knows_first = self._was_first = knows_first
        self._evaluated_at: int | None = None
        self._untold: Evaluation | None = None
        parts.state.keep("milestones", self)

    def progress(self) -> dict[str, Any]:
        """Return what a resumed run or a newcomer goes on from."""
        return {"evaluated_at": self._evaluated_at}

    def restore(self, progress: dict[str, Any]) -> None:
        """Take over what `progress` returned."""
        self._evaluated_at = progress["evaluated_at"]

    def reach(self) -> None:
        """Do what is due at the step that was just done."""
        self.evaluate()
        self._save_if_due()
        self.tell_saved()

    def take_over(self) -> None:
        """Do, before the weights move, what waited for a first worker to be known, or what the last one died over."""
        parts = self._parts
        parts.view.step = parts.state.step
        if self._untold is not None:
            self._tell(self._untold)
        if parts.view.is_first and not self._was_first:
            self._save_if_due()
        self._knows_first, self._was_first = True, parts.view.is_first

    def forget(self) -> None:
        """Drop an evaluation that nobody was told of: these weights are gone, a peer's have come."""
        self._untold = None

    def evaluate(self) -> None:
        """Evaluate if it is time to, and these weights were not evaluated already, before a resume.

        Raises:
            GuardError: the student's logits are not finite.
            Interrupted: the run is to stop.
        """
        parts, step = self._parts, self._parts.state.step
        if parts.evaluator is None or not parts.cadence.evaluate_at(step) or self._evaluated_at == step:
            return
        began = time.monotonic()
        try:
            with parts.metrics.timing("evaluate"):
                evaluation = parts.evaluator.evaluate(parts.student, step)
        except ValueError as error:
            raise GuardError(f"the evaluation after step {step} is not finite: {error}. Lower learning_rate") from error
        self._outcome.evaluation_seconds = time.monotonic() - began
        if evaluation is None:
            return
        # Before the first quorum nobody knows who writes; the callbacks are told once that is known.
        if self._knows_first or step >= parts.cadence.last_step:
            self._tell(evaluation)
        else:
            self._untold = evaluation

    def tell_saved(self, *, wait: bool = False) -> None:
        """Tell of the checkpoints that have become complete; `wait` for those under way."""
        for address in self._parts.saving.saved(wait=wait):
            self._hooks.call("on_save", address)

    def _tell(self, evaluation: Evaluation) -> None:
        step = self._parts.state.step
        self._untold, self._evaluated_at = None, step
        self._outcome.evaluations.append((step, evaluation))
        self._hooks.call("on_evaluate", evaluation)

    def _save_if_due(self) -> None:
        parts, step = self._parts, self._parts.state.step
        best = parts.best.at(step) if parts.best else None
        if best is None and not parts.cadence.save_at(step):
            return
        began = time.monotonic()
        if parts.view.is_first:
            # Nothing moves after the last step: the weights themselves are written, and no copy is needed.
            with parts.metrics.timing("checkpoint"):
                parts.saving.save(best, background=step < parts.cadence.last_step)
        self._outcome.save_seconds = time.monotonic() - began
        parts.metrics.checkpoint_seen()
