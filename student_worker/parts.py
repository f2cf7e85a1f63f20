"""What a run is made of, and what it comes to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from student_worker.cadence import Cadence
from student_worker.callbacks import Callback, RunView
from student_worker.callbacks.best import Best, BestSoFar
from student_worker.elastic.group import Group
from student_worker.elastic.reduction import GradientSum
from student_worker.evaluation.evaluate import Evaluator
from student_worker.evaluation.figures import Evaluation
from student_worker.fetching_ahead import PREFETCH_STEPS
from student_worker.kept_mass import KeptMass
from student_worker.metrics import WorkerMetrics
from student_worker.optimizer import StudentOptimizer
from student_worker.prefetch import Prefetcher
from student_worker.run_folder.journal import Journal
from student_worker.schedule import Schedule
from student_worker.shard_step import Objective, ShardLoss
from student_worker.state import WorkerState
from student_worker.steps import Steps
from student_worker.students.base import Student

Status = Literal["done", "stopped", "interrupted", "failed"]


class Saving(Protocol):
    """Writes checkpoints of the weights as they are; called by the first worker alone."""

    def save(self, best: Best | None, *, background: bool = True) -> None:
        """Write one; `best` if these weights are the best so far. One that is there stays as it is.

        In the background a copy is written, and the weights may move meanwhile.
        """

    def saved(self, *, wait: bool = False) -> Sequence[str]:
        """Return where those stand that have become complete since the last call; `wait` for those under way."""


class SavesNothing:
    """Writes no checkpoint."""

    def save(self, best: Best | None, *, background: bool = True) -> None:
        """Write none."""

    def saved(self, *, wait: bool = False) -> Sequence[str]:
        """There is none."""
        del wait
        return ()


@dataclass(slots=True)
class Parts:
    """What a run is made of."""

    student: Student
    optimizer: StudentOptimizer
    state: WorkerState
    steps: Steps
    prefetcher: Prefetcher
    evaluator: Evaluator | None
    group: Group
    tree: GradientSum
    objective: Objective
    schedule: Schedule
    cadence: Cadence
    view: RunView
    stopping: threading.Event
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    callbacks: Sequence[Callback] = ()
    """Called in this order, after `metrics` and `best`."""
    saving: Saving = field(default_factory=SavesNothing)
    best: BestSoFar | None = None
    sample_log: Journal | None = None
    max_loss: float | None = None
    stopped: str | None = None
    """What an earlier start of this run was stopped for, after the steps that are done: it is over."""
    kept_mass: KeptMass = field(default_factory=KeptMass)
    seed: int = 0
    prefetch_steps: int = PREFETCH_STEPS
    autocast: bool = False
    part_size: int | None = None
    """The most samples of one forward pass; None: a whole micro-shard."""


@dataclass(slots=True)
class Outcome:
    """What a run has come to.

    `is_first`: whether this worker had rank 0 at the last step. `reason`: what a callback stopped it for. Seconds are
    of this process alone: of its first steps, of its newest evaluation and checkpoint.
    """

    step: int
    is_first: bool
    status: Status = "failed"
    reason: str | None = None
    losses: ShardLoss | None = None
    evaluations: list[tuple[int, Evaluation]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    evaluation_seconds: float = 0.0
    save_seconds: float = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether there is more to do, after a resume."""
        return self.status == "interrupted"
