"""Where each millisecond of a training step goes, by the trainer's own clocks and three more around what computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from benchmarks._result import Value
from student_worker import shard_step
from student_worker.metrics import WorkerMetrics
from student_worker.students.base import Student

PHASES: Final = ("teacher_wait", "forward", "loss", "backward", "quorum", "reduce", "update", "other")
"""In the order of a step. `backward` is what is left of computing, `other` what is left of the step."""


class StepPhases:
    """Seconds by phase, added up from step to step."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._within = {"forward": 0.0, "loss": 0.0}
        self._steps: list[dict[str, float]] = []
        self._seen = self._now()

    @contextmanager
    def watching(self, student: Student) -> Iterator[None]:
        """Time the forward pass and the loss, which the trainer counts together with what follows, until the end."""
        with (
            patch.object(student, "row_states", self._timed("forward", student.row_states)),
            patch.object(student, "head", self._timed("forward", student.head)),
            patch.object(shard_step, "_loss", self._timed("loss", shard_step._loss)),  # noqa: SLF001 - no seam of its own
        ):
            yield

    def end_step(self, seconds: float) -> None:
        """Count what was spent since the last call as that of one step, which took so long as a whole."""
        now = self._now()
        spent = {phase: now[phase] - self._seen[phase] for phase in now}
        self._seen = now
        spent["backward"] = spent.pop("compute") - spent["forward"] - spent["loss"]
        spent["other"] = seconds - sum(spent.values())
        self._steps.append(spent)

    def mean(self, chosen: slice) -> dict[str, float]:
        """Return the mean seconds a step by phase, of the chosen steps."""
        counted = self._steps[chosen]
        return {phase: sum(step[phase] for step in counted) / len(counted) for phase in PHASES}

    def _now(self) -> dict[str, float]:
        ours = ("teacher_wait", "quorum", "compute", "reduce", "update")
        return {**{phase: self._metrics.phase_seconds[phase] for phase in ours}, **self._within}  # type: ignore[index]  # literals

    def _timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **keywords: Any) -> Any:
            began = time.monotonic()
            try:
                return call(*args, **keywords)
            finally:
                self._within[phase] += time.monotonic() - began

        return timed


def phase_columns(phases: dict[str, float]) -> dict[str, Value]:
    """Return what a table says of them, in milliseconds."""
    return {f"{phase}_ms": round(1e3 * phases[phase], 2) for phase in PHASES}
