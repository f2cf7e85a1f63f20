"""A smoke run: a few steps of a run, to see that they work and how long all of them would take."""

from __future__ import annotations

import statistics
from datetime import timedelta
from typing import Any

from student_worker.cadence import Cadence
from student_worker.parts import Outcome


def project(cadence: Cadence, outcome: Outcome) -> dict[str, Any]:
    """Return how long a step took, and how long the whole run would take, evaluations included.

    The first step is left out where there are others: it compiles, allocates, and waits for the first answer.
    Checkpoints are not counted, since a smoke run writes none.
    """
    seconds = outcome.step_seconds[1:] or outcome.step_seconds
    step_seconds = statistics.median(seconds) if seconds else 0.0
    projected = cadence.projected_seconds(step_seconds, outcome.evaluation_seconds, 0.0)
    return {
        "steps_done": outcome.step,
        "steps_of_the_run": cadence.max_steps,
        "seconds_a_step": round(step_seconds, 4),
        "seconds_an_evaluation": round(outcome.evaluation_seconds, 4),
        "projected_seconds": round(projected, 1),
        "projected": str(timedelta(seconds=round(projected))),
    }
