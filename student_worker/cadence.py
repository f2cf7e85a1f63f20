"""How long a run goes on and how often it does what: a pure function of the step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cadence:
    """How long a run goes on and how often it does what; None is never, but see `evaluate_at`.

    `smoke_steps` cuts the run short without changing anything of the steps that are done.
    """

    max_steps: int
    logging_steps: int
    eval_steps: int | None
    save_steps: int
    smoke_steps: int | None = None

    @property
    def last_step(self) -> int:
        """The step after which the run is over."""
        return self.max_steps if self.smoke_steps is None else min(self.max_steps, self.smoke_steps)

    def log_at(self, step: int) -> bool:
        """Tell whether to write a line of metrics once `step` steps are done."""
        return step == self.last_step or step % self.logging_steps == 0

    def evaluate_at(self, step: int) -> bool:
        """Tell whether to evaluate once `step` steps are done: at start, end and every `eval_steps`; 0 is never."""
        if self.eval_steps == 0:
            return False
        return step in (0, self.last_step) or (self.eval_steps is not None and step % self.eval_steps == 0)

    def save_at(self, step: int) -> bool:
        """Tell whether to write a checkpoint once `step` steps are done."""
        return step > 0 and (step == self.last_step or step % self.save_steps == 0)

    def projected_seconds(self, step_seconds: float, evaluation_seconds: float, save_seconds: float) -> float:
        """Return how long the whole run takes, `max_steps` of it, when one of each takes so long."""
        evaluations = 0 if self.eval_steps == 0 else 2 + (self.max_steps - 1) // (self.eval_steps or self.max_steps)
        saves = 1 + (self.max_steps - 1) // self.save_steps
        return self.max_steps * step_seconds + evaluations * evaluation_seconds + saves * save_seconds
