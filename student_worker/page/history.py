"""A run as its page draws it: steps, evaluations, workers and checkpoints, of this process and those before it.

A run may have millions of steps: what is kept is thinned, evenly, as it grows. Written by the trainer's thread, read by
the page's.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from student_worker.callbacks.base import Callback, RunView, StepRecord
from student_worker.evaluation.figures import Evaluation
from student_worker.metrics import Phase, WorkerMetrics
from student_worker.run_folder.journal import Journal

MOST_POINTS = 2000
RECENT_SECONDS = 60.0

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that this worker has seen complete: its whole address, or the name of a folder in the run's own."""

    address: str
    step: int
    when: float


@dataclass(frozen=True, slots=True)
class Look:
    """The history at one moment. Steps and evaluations are lines of metrics.jsonl; times are since the epoch."""

    status: str
    step: int
    max_steps: int
    is_first: bool
    steps: list[Figures]
    evaluations: list[Figures]
    worlds: list[tuple[int, int]]
    checkpoint: Checkpoint | None
    seconds: float
    phases: dict[Phase, float]
    recent_seconds: float
    recent_phases: dict[Phase, float]


@dataclass(slots=True)
class _Mark:
    """How long each phase had taken at one time."""

    when: float
    phases: dict[Phase, float] = field(default_factory=dict)


class RunHistory(Callback):
    """What a worker has seen of its run."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._began: float | None = None
        self._status = "starting"
        self._view: RunView | None = None
        self._steps: list[Figures] = []
        self._evaluations: list[Figures] = []
        self._worlds: list[tuple[int, int]] = []
        self._checkpoint: Checkpoint | None = None
        self._marks: deque[_Mark] = deque(maxlen=256)

    def on_train_begin(self, run: RunView) -> None:
        """Take over what earlier starts of the run have written."""
        lines = [line for line in Journal(run.output_dir).read() if line["step"] <= run.step]
        with self._lock:
            self._began, self._status, self._view = time.monotonic(), "training", run
            self._mark()
            self._steps = [line for line in lines if line.get("event") == "step"][-MOST_POINTS:]
            self._evaluations = [line for line in lines if line.get("event") == "evaluation"]
            for line in self._steps:
                self._note_world(line["step"], line["world_size"])

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        """Keep one committed step."""
        del run
        with self._lock:
            self._steps.append(asdict(step))
            if len(self._steps) > MOST_POINTS:
                # The newest stays; with each thinning all others stand twice as far apart.
                self._steps = self._steps[::-2][::-1]
            self._note_world(step.step, step.world_size)
            if not self._marks or time.monotonic() - self._marks[-1].when >= 1.0:
                self._mark()

    def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
        """Keep one evaluation."""
        with self._lock:
            self._evaluations.append({"step": run.step, **evaluation.as_json()})

    def on_save(self, run: RunView, checkpoint: str) -> None:
        """Keep the newest checkpoint."""
        with self._lock:
            # One that was written in the background is complete some steps later; its name says which it is of.
            name = checkpoint.rstrip("/").rpartition("/")[2]
            number = name.rpartition("-")[2]
            step = int(number) if number.isdecimal() else run.step
            self._checkpoint = Checkpoint(checkpoint if "://" in checkpoint else name, step, time.time())

    def on_train_end(self, run: RunView, status: str) -> None:
        """Keep what the run has come to."""
        del run
        with self._lock:
            self._status = status

    def look(self) -> Look:
        """Return what there is now."""
        with self._lock:
            now = time.monotonic()
            phases = dict(self._metrics.phase_seconds)
            since = next((mark for mark in self._marks if mark.when >= now - RECENT_SECONDS), None)
            before = since.phases if since else phases
            view = self._view
            return Look(
                status=self._status,
                step=view.step if view else 0,
                max_steps=view.max_steps if view else 0,
                is_first=view.is_first if view else False,
                steps=list(self._steps),
                evaluations=list(self._evaluations),
                worlds=list(self._worlds),
                checkpoint=self._checkpoint,
                seconds=now - self._began if self._began is not None else 0.0,
                phases=phases,
                recent_seconds=now - since.when if since else 0.0,
                recent_phases={name: value - before.get(name, 0.0) for name, value in phases.items()},
            )

    def _mark(self) -> None:
        self._marks.append(_Mark(time.monotonic(), dict(self._metrics.phase_seconds)))

    def _note_world(self, step: int, size: int) -> None:
        if not self._worlds or self._worlds[-1][1] != size:
            self._worlds.append((step, size))
            self._worlds = self._worlds[-MOST_POINTS:]


def finite(value: object) -> float | None:
    """Return a figure that can be shown; None for one that is not there, or no number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
