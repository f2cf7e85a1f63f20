"""The loop: answers awaited, a step agreed on, micro-shards computed, gradients summed, weights moved.

Everything that may take long (the teacher, evaluation, checkpoints) stands before `start_step`, since from there to
the vote the other workers wait. A step that isn't voted through is done again with whoever is left (how often is the
group's to bound). Knows nothing of recipes, processes or where its parts come from.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import structlog
import torch
from torch import Tensor

from stillhouse.errors import GuardError
from stillhouse.finite import all_finite
from stillhouse.tracing import span
from student_worker.callbacks import StepRecord
from student_worker.callbacks.hooks import Hooks
from student_worker.elastic.group import Membership, SoloGroup
from student_worker.failpoints import fail_point
from student_worker.milestones import Milestones
from student_worker.parts import Outcome, Parts, Status
from student_worker.prefetch import Interrupted, Key
from student_worker.scalars import NUM_SCALARS, STOP, check_samples, sample_line, shard_scalars
from student_worker.shard_step import ShardLoss, shard_gradient

MAX_TIMED_STEPS = 1000
"""More tell a projection nothing, and a run may have millions."""

_log = structlog.get_logger(__name__)


class Trainer:
    """Runs the loop over `parts`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        # Until the first quorum nobody knows their slice: the whole batch is asked for, which costs the teacher
        # nothing twice (it computes a question once), and keeps waiting for it out of the step.
        self._membership = Membership(parts.state.step, 0, 1)
        self._is_alone = isinstance(parts.group, SoloGroup)
        self._stop_agreed = parts.stopped is not None
        self._told_bytes = 0
        parts.metrics.watch(parts.prefetcher)
        ours = [parts.metrics, *([parts.best] if parts.best else [])]
        self._hooks = Hooks([*ours, *parts.callbacks], parts.view)
        self._hooks.keep_all(parts.state)
        self._hooks.stop = parts.stopped
        if parts.sample_log is not None:
            parts.state.keep("samples", parts.sample_log)
        self.outcome = Outcome(parts.state.step, is_first=parts.view.is_first)
        self._milestones = Milestones(parts, self._hooks, self.outcome, knows_first=self._is_alone)

    def run(self) -> Outcome:
        """Train to the end, until a callback stops the run, or until `stopping` is set.

        The step under way is finished first. A wait for the teacher ends there too; the last committed step stands.

        Raises:
            GuardError: a loss that is not finite or above the ceiling (no weight has moved), a peer that computed other
                samples, a changed teacher, a callback that failed.
            TeacherError: the teacher has no answer.
        """
        parts, outcome = self._parts, self.outcome
        try:
            status = self._loop()
            if parts.view.is_first:
                parts.saving.save(None, background=False)
            self._milestones.tell_saved(wait=True)
            outcome.status, outcome.reason = status, self._hooks.stop if status == "stopped" else None
        finally:
            outcome.step = parts.state.step
            self._hooks.end(outcome.status)
        return outcome

    def _loop(self) -> Status:
        parts = self._parts
        parts.view.step = parts.state.step
        try:
            self._hooks.call("on_train_begin")
            self._milestones.evaluate()
            while (status := self._status()) is None:
                fail_point("between-steps", parts.state.step)
                with span("step", step=parts.state.step + 1):
                    self._step()
        except Interrupted:
            return "interrupted"
        return status

    def _status(self) -> Status | None:
        """Return what the run has come to, None while it goes on."""
        parts = self._parts
        if parts.state.step >= parts.cadence.last_step:
            return "done"
        if self._stop_agreed or (self._is_alone and self._hooks.stop is not None):
            return "stopped"
        return "interrupted" if parts.stopping.is_set() else None

    def _step(self) -> None:
        """Do one step; where the vote fails, nothing has changed and it is to be done again."""
        parts = self._parts
        began, waited = time.monotonic(), parts.prefetcher.wait_seconds
        self._plan()
        parts.prefetcher.wait(self._keys(parts.state.step))
        with parts.metrics.timing("quorum"):
            membership = self._start_step()
        self._plan()
        with parts.metrics.timing("compute"):
            scalars, reason = self._compute()
        with parts.metrics.timing("reduce"):
            gradient, scalars = parts.group.reduce(parts.tree, scalars)
        step = parts.state.step
        fail_point("before-vote", step)
        with parts.metrics.timing("quorum"):
            is_committed = parts.group.commit()
        if not is_committed:
            # Whoever came has the weights now, and its share of the next attempt.
            self._membership = replace(membership, newcomers=0)
            parts.metrics.uncommitted()
            _log.warning("step_not_committed", step=step + 1, world_size=membership.world_size)
            return
        fail_point("after-vote", step)
        self._milestones.take_over()
        if scalars[0, STOP] > 0:
            # Somebody wants to stop: this step is nobody's, and all stand where that one saw enough.
            self._stop_agreed = True
            self._hooks.stop = self._hooks.stop or "a callback of another worker has stopped the run"
            return
        check_samples(scalars, parts.steps.shard_ids(step), step)
        self._apply(gradient, ShardLoss(*scalars[:, :3].sum(0).tolist()), reason, began, waited)

    def _start_step(self) -> Membership:
        """Agree on who takes part; this worker may have healed."""
        parts, planned_step, known = self._parts, self._parts.state.step, self._membership
        self._membership = membership = parts.group.start_step()
        if parts.state.step != planned_step:
            parts.metrics.healed()
            _log.info("healed", step=parts.state.step, from_step=planned_step)
            self._milestones.forget()
        if (membership.rank, membership.world_size) != (known.rank, known.world_size):
            _log.info("membership", step=membership.step, rank=membership.rank, world_size=membership.world_size)
        parts.metrics.membership(membership.world_size)
        parts.view.is_first = self.outcome.is_first = membership.rank == 0
        return membership

    def _keys(self, step: int) -> list[Key]:
        parts = self._parts
        return [(step, shard) for shard in self._membership.shards(step, parts.steps.micro_shards)]

    def _plan(self) -> None:
        parts = self._parts
        first = parts.state.step
        last = min(first + parts.prefetch_steps, parts.cadence.last_step - 1)
        parts.prefetcher.plan((key for step in range(first, last + 1) for key in self._keys(step)), first)

    def _compute(self) -> tuple[Tensor, str]:
        """Return the scalars `[M, 6]` of this worker's shards, whose gradients are in the tree, and what went wrong."""
        parts, step, reason = self._parts, self._parts.state.step, ""
        scalars = torch.zeros(parts.steps.micro_shards, NUM_SCALARS, dtype=torch.float64)
        ids = parts.steps.shard_ids(step)
        # Not kept between steps: while the sum is exchanged, the weights' size in memory is better left to that.
        flat = torch.zeros(parts.optimizer.num_parameters, device=parts.student.device)
        parts.tree.clear()
        for _, shard in self._keys(step):
            payloads = parts.prefetcher.take((step, shard))
            parts.kept_mass.see(payloads)
            flat.zero_()
            parts.optimizer.attach(flat)
            try:
                loss = shard_gradient(
                    parts.student,
                    parts.steps.shard(step, shard),
                    payloads,
                    parts.objective,
                    parts.steps.counts(step),
                    seed=parts.seed,
                    key=(step, shard),
                    part_size=parts.part_size,
                    autocast=parts.autocast,
                )
            except ValueError as error:
                # Logits that are not finite. Every worker learns of it with the sum, and all stop together.
                reason, loss = str(error), ShardLoss(math.nan, math.nan, math.nan)
            parts.tree.add(shard, flat)
            scalars[shard] = shard_scalars(loss, ids[shard])
            fail_point("mid-step", step)
        parts.optimizer.detach()
        # The one column that several workers may add to: whoever wants to stop, shards or none.
        scalars[0, STOP] = float(self._hooks.stop is not None)
        return scalars, reason

    def _apply(self, gradient: Tensor, losses: ShardLoss, reason: str, began: float, waited: float) -> None:
        parts = self._parts
        step = parts.state.step
        counts, rate = parts.steps.counts(step), parts.schedule.at(step)
        with parts.metrics.timing("update"):
            self._guard(gradient, losses, reason)
            norm = parts.optimizer.apply(gradient, rate)
        parts.state.step = parts.view.step = step + 1
        parts.state.num_tokens += counts.num_tokens
        seconds = time.monotonic() - began
        self.outcome.losses = losses
        if len(self.outcome.step_seconds) < MAX_TIMED_STEPS:
            self.outcome.step_seconds.append(seconds)
        self._log_samples(step)
        record = StepRecord(
            step=step + 1,
            loss=losses.loss,
            cross_entropy=losses.cross_entropy,
            kl=losses.kl,
            learning_rate=rate,
            grad_norm=norm,
            tokens=counts.num_tokens,
            tokens_per_second=counts.num_tokens / seconds,
            teacher_wait_seconds=parts.prefetcher.wait_seconds - waited,
            step_seconds=seconds,
            world_size=self._membership.world_size,
            answer_bytes=parts.prefetcher.received_bytes - self._told_bytes,
        )
        self._told_bytes += record.answer_bytes
        self._hooks.call("on_step_end", record)
        self._milestones.reach()

    def _guard(self, gradient: Tensor, losses: ShardLoss, reason: str) -> None:
        step, ceiling = self._parts.state.step + 1, self._parts.max_loss
        is_finite = math.isfinite(losses.loss)
        if not (is_finite and all_finite(gradient)):
            self._parts.metrics.stopped_by_guard("not_finite", losses.loss)
            what = "its gradient is not finite" if is_finite else "that is not finite"
            raise GuardError(
                f"step {step}: the loss is {losses.loss}, and {what}; no weight was moved. "
                f"{reason or 'Lower learning_rate, or look at the samples of this step'}"
            )
        if ceiling is not None and losses.loss > ceiling:
            self._parts.metrics.stopped_by_guard("max_loss", losses.loss)
            raise GuardError(
                f"step {step}: the loss is {losses.loss}, above max_loss {ceiling}; no weight was moved. "
                "Lower learning_rate, look at the samples of this step, or raise max_loss"
            )

    def _log_samples(self, step: int) -> None:
        parts, log = self._parts, self._parts.sample_log
        if log is not None:
            log.add(step=step + 1, **sample_line(self._membership, step, parts.steps.shard_ids(step)))
            log.flush(step=step + 1, writes=parts.view.is_first, sync=parts.cadence.save_at(step + 1))
