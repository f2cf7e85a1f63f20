"""The loop: answers awaited, a step agreed on, micro-shards computed, gradients summed, weights moved.

Everything that may take long (the teacher, evaluation, checkpoints) stands before `start_step`, since from there to
the vote the other workers wait. A step that isn't voted through is done again with whoever is left (how often is the
group's to bound). Knows nothing of recipes, processes or where its parts come from.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
import torch
from torch import Tensor

from stillhouse.errors import GuardError
from student_worker.batches import make_batch
from student_worker.evaluate import Evaluation, Evaluator
from student_worker.failpoints import fail_point
from student_worker.group import Group, Membership
from student_worker.journal import Journal
from student_worker.kept_mass import KeptMass
from student_worker.metrics import WorkerMetrics
from student_worker.optimizer import StudentOptimizer
from student_worker.prefetch import Interrupted, Key, Prefetcher
from student_worker.reduction import GradientSum
from student_worker.schedule import Schedule
from student_worker.shard_step import Objective, ShardLoss, backward, shard_seed
from student_worker.state import WorkerState
from student_worker.steps import Steps
from student_worker.students.base import Student

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cadence:
    """How long a run goes on and how often it does what; None is never, but see `evaluate_at`."""

    max_steps: int
    logging_steps: int
    eval_steps: int | None
    save_steps: int

    def log_at(self, step: int) -> bool:
        """Tell whether to write a line of metrics once `step` steps are done."""
        return step == self.max_steps or step % self.logging_steps == 0

    def evaluate_at(self, step: int) -> bool:
        """Tell whether to evaluate once `step` steps are done: at start, end and every `eval_steps`; 0 is never."""
        if self.eval_steps == 0:
            return False
        return step in (0, self.max_steps) or (self.eval_steps is not None and step % self.eval_steps == 0)

    def save_at(self, step: int) -> bool:
        """Tell whether to write a checkpoint once `step` steps are done."""
        return step > 0 and (step == self.max_steps or step % self.save_steps == 0)


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
    journal: Journal
    metrics: WorkerMetrics
    save: Callable[[], None]
    stopping: threading.Event
    kept_mass: KeptMass = field(default_factory=KeptMass)
    seed: int = 0
    prefetch_steps: int = 2
    autocast: bool = False
    is_first: bool = True
    """Whether this worker writes before the first quorum has said who does."""


@dataclass(slots=True)
class Outcome:
    """What a run has come to. `is_first` is whether this worker had rank 0 at the last step."""

    step: int
    interrupted: bool
    is_first: bool
    losses: ShardLoss | None = None
    evaluations: list[tuple[int, Evaluation]] = field(default_factory=list)


class Trainer:
    """Runs the loop over `parts`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        # Until the first quorum nobody knows their slice: the whole batch is asked for, which costs the teacher
        # nothing twice (it computes a question once), and keeps waiting for it out of the step.
        self._membership = Membership(parts.state.step, 0, 1)
        self.outcome = Outcome(parts.state.step, interrupted=False, is_first=parts.is_first)
        self._unwritten: tuple[int, Evaluation] | None = None

    def run(self) -> Outcome:
        """Train to the end, or until `stopping` is set; then the step under way is finished first.

        A wait for the teacher ends there too; the last committed step stands.

        Raises:
            GuardError: a loss that is not finite (no weight has moved), or a changed teacher.
            TeacherError: the teacher has no answer.
        """
        parts = self._parts
        try:
            if parts.state.step == 0:
                self._evaluate()
            while parts.state.step < parts.cadence.max_steps and not parts.stopping.is_set():
                fail_point("between-steps", parts.state.step)
                self._step()
            self.outcome.interrupted = parts.state.step < parts.cadence.max_steps
        except Interrupted:
            self.outcome.interrupted = True
        self.outcome.step = parts.state.step
        return self.outcome

    def _step(self) -> None:
        """Do one step; where the vote fails, nothing has changed and it is to be done again."""
        parts = self._parts
        began, waited = time.monotonic(), parts.prefetcher.wait_seconds
        self._plan()
        parts.prefetcher.wait(self._keys(parts.state.step))
        planned_step = parts.state.step
        known = self._membership
        self._membership = membership = parts.group.start_step()
        if parts.state.step != planned_step:
            _log.info("healed", step=parts.state.step, from_step=planned_step)
            self._unwritten = None
        if (membership.rank, membership.world_size) != (known.rank, known.world_size):
            _log.info("membership", step=membership.step, rank=membership.rank, world_size=membership.world_size)
        parts.metrics.membership(membership.world_size)
        self._plan()
        scalars, reason = self._compute()
        gradient, scalars = parts.group.reduce(parts.tree, scalars)
        fail_point("before-vote", parts.state.step)
        if not parts.group.commit():
            _log.warning("step_not_committed", step=parts.state.step + 1, world_size=membership.world_size)
            return
        fail_point("after-vote", parts.state.step)
        losses = ShardLoss(*scalars.sum(0).tolist())
        self._apply(gradient, losses, reason, began, parts.prefetcher.wait_seconds - waited)

    def _keys(self, step: int) -> list[Key]:
        parts = self._parts
        return [(step, shard) for shard in parts.group.shards(self._membership, parts.steps.micro_shards)]

    def _plan(self) -> None:
        parts = self._parts
        first = parts.state.step
        last = min(first + parts.prefetch_steps, parts.cadence.max_steps - 1)
        parts.prefetcher.plan((key for step in range(first, last + 1) for key in self._keys(step)), first)

    def _compute(self) -> tuple[Tensor, str]:
        """Return the losses `[M, 3]` of this worker's shards, whose gradients are in the tree, and what went wrong."""
        parts, step, reason = self._parts, self._parts.state.step, ""
        scalars = torch.zeros(parts.steps.micro_shards, 3, dtype=torch.float64)
        # Not kept between steps: while the sum is exchanged, the weights' size in memory is better left to that.
        flat = torch.zeros(parts.optimizer.num_parameters, device=parts.student.device)
        parts.tree.clear()
        for _, shard in self._keys(step):
            payloads = parts.prefetcher.take((step, shard))
            parts.kept_mass.see(payloads)
            flat.zero_()
            parts.optimizer.attach(flat)
            try:
                loss = backward(
                    parts.student,
                    make_batch(parts.steps.shard(step, shard)),
                    payloads,
                    parts.objective,
                    parts.steps.counts(step),
                    seed=shard_seed(parts.seed, step, shard),
                    autocast=parts.autocast,
                )
            except ValueError as error:
                # Logits that are not finite. Every worker learns of it with the sum, and all stop together.
                reason, loss = str(error), ShardLoss(math.nan, math.nan, math.nan)
            parts.tree.add(shard, flat)
            scalars[shard] = torch.tensor([loss.loss, loss.cross_entropy, loss.kl], dtype=torch.float64)
            fail_point("mid-step", step)
        parts.optimizer.detach()
        return scalars, reason

    def _apply(self, gradient: Tensor, losses: ShardLoss, reason: str, began: float, waited: float) -> None:
        parts = self._parts
        step = parts.state.step
        if not (math.isfinite(losses.loss) and bool(torch.isfinite(gradient).all())):
            raise GuardError(
                f"step {step + 1}: the loss is {losses.loss} or its gradient not finite; no weight was moved. "
                f"{reason or 'Lower learning_rate, or look at the samples of this step'}"
            )
        counts, rate = parts.steps.counts(step), parts.schedule.at(step)
        norm = parts.optimizer.apply(gradient, rate)
        parts.state.step = step + 1
        parts.state.num_tokens += counts.num_tokens
        seconds = time.monotonic() - began
        self.outcome.losses = losses
        self.outcome.is_first = self._membership.rank == 0
        parts.metrics.step_done(losses, counts.num_tokens, seconds, waited)
        if self.outcome.is_first:
            self._write_unwritten()
        if self.outcome.is_first and parts.cadence.log_at(step + 1):
            self._log_step(losses, rate, norm, counts.num_tokens, seconds, waited)
        self._evaluate()
        if parts.cadence.save_at(parts.state.step):
            if self.outcome.is_first:
                parts.save()
            parts.metrics.checkpoint_seen()

    def _log_step(
        self, losses: ShardLoss, rate: float, norm: float, tokens: int, seconds: float, waited: float
    ) -> None:
        step = self._parts.state.step
        fields: dict[str, float] = {
            "loss": losses.loss,
            "cross_entropy": losses.cross_entropy,
            "kl": losses.kl,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "teacher_wait_seconds": waited,
            "step_seconds": seconds,
            "world_size": self._membership.world_size,
        }
        self._parts.journal.write("step", step=step, **fields)
        _log.info("step", step=step, **{name: round(value, 6) for name, value in fields.items()})

    def _evaluate(self) -> None:
        """Evaluate if it is time to; the line is written once it is known who writes."""
        parts, step = self._parts, self._parts.state.step
        if parts.evaluator is None or not parts.cadence.evaluate_at(step):
            return
        evaluation = parts.evaluator.evaluate(parts.student, step)
        if evaluation is None:
            return
        self.outcome.evaluations.append((step, evaluation))
        self._unwritten = (step, evaluation)
        if step > 0 and self.outcome.is_first:
            self._write_unwritten()

    def _write_unwritten(self) -> None:
        if self._unwritten is not None:
            step, evaluation = self._unwritten
            self._unwritten = None
            self._parts.journal.write("evaluation", step=step, **evaluation.as_json())
            _log.info("evaluation", step=step, **evaluation.as_json())
