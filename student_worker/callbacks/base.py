"""What may watch a run, and end it: five hooks, called by the trainer in every worker.

    class MyCallback(Callback):
        def on_step_end(self, run: RunView, step: StepRecord) -> None:
            if run.is_first and step.loss < 0.1:
                raise Stop("the loss is below 0.1")

Named in the recipe as `callbacks: [my_module:MyCallback]`. Every worker calls the hooks at the same steps; a hook that
writes should do so only where `run.is_first`. A hook that raises `Stop` ends the run in order: every worker stops after
the same step, with a checkpoint, an export and the status "stopped". Any other exception stops the run with the
checkpoint of the last step kept. Knows nothing of teachers, groups or optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from student_worker.evaluation.figures import Evaluation


class Stop(Exception):  # noqa: N818 - nothing went wrong: a callback has seen enough
    """Raised by a hook to end the run in order; its text stands in result.json as the reason."""


@dataclass(slots=True)
class RunView:
    """What every hook is told of the run. `is_first`: whether this worker has rank 0, the one that writes.

    `identity` holds the run's fingerprints, `recipe` its keys as JSON holds them, without secrets.
    """

    output_dir: Path
    name: str
    step: int
    max_steps: int
    is_first: bool
    recipe: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A committed step: what metrics.jsonl holds of it. Losses in nats; `kl` holds its T^2.

    `answer_bytes`: of the teacher's answers that have reached this worker since the step before.
    """

    step: int
    loss: float
    cross_entropy: float
    kl: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    teacher_wait_seconds: float
    step_seconds: float
    world_size: int
    answer_bytes: int = 0


class Callback:
    """Does nothing at any hook; override what you need."""

    def on_train_begin(self, run: RunView) -> None:
        """Before the first step, after a resume too."""

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        """After each committed step, its weights moved."""

    def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
        """After each held-out evaluation, of the weights after `run.step` steps."""

    def on_save(self, run: RunView, checkpoint: str) -> None:
        """After a checkpoint is complete at this folder or address; only in the worker that wrote it."""

    def on_train_end(self, run: RunView, status: str) -> None:
        """Once, when the run is over: `status` is done, stopped, interrupted or failed."""
