"""The learning rate as a pure function of the step, with the shapes and names that transformers gives them.

Nothing is remembered between steps, so a resumed or healed worker has the right rate by knowing its step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

SchedulerType = Literal["cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt"]

INVERSE_SQRT_TIMESCALE = 10_000
"""Steps over which `inverse_sqrt` falls to 1 / sqrt(2) where there is no warm-up to say, as in transformers."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up from 0 over `warmup_steps`, then the chosen shape.

    `cosine` and `linear` fall to 0 at `max_steps`. `inverse_sqrt` falls with the root of the step, wherever the end
    is. `constant` and `constant_with_warmup` are one shape here: it stays at `learning_rate` after the warm-up
    (transformers' `constant` leaves out a warm-up that was asked for, and says nothing).
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
        progress = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        match self.kind:
            case "constant" | "constant_with_warmup":
                return 1.0
            case "inverse_sqrt":
                timescale = self.warmup_steps or INVERSE_SQRT_TIMESCALE
                return 1.0 / math.sqrt((step + timescale - self.warmup_steps) / timescale)
            case "linear":
                return max(0.0, 1.0 - progress)
            case "cosine":
                return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
