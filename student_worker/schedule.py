"""The learning rate as a pure function of the step, with the shapes and names that transformers gives them.

Nothing is remembered between steps, so a resumed or healed worker has the right rate by knowing its step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

SchedulerType = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up from 0 over `warmup_steps`, then the chosen shape down to 0 at `max_steps`.

    `constant` stays at `learning_rate` after the warm-up, as transformers' `constant_with_warmup` does.
    """

    learning_rate: float
    warmup_steps: int
    max_steps: int
    kind: SchedulerType = "cosine"

    def at(self, step: int) -> float:
        """Return the rate of the update that follows `step` completed ones (so step 0 of a warm-up has rate 0)."""
        return self.learning_rate * self._factor(step)

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        if self.kind == "linear":
            return max(0.0, 1.0 - progress)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
