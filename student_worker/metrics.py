"""What a worker counts, under the names that dashboards and alerts use. Base units: seconds, tokens.

Each worker has a registry of its own, so that several can live in one process (tests do).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from stillhouse.own_metrics import show_self
from stillhouse.providers import Answer
from stillhouse.tracing import span
from student_worker.callbacks.base import Callback, RunView, StepRecord
from student_worker.evaluation.figures import Evaluation
from student_worker.prefetch import Prefetcher

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

Phase = Literal["teacher_wait", "quorum", "compute", "reduce", "update", "evaluate", "checkpoint"]
"""Where a worker's time goes: waiting for answers; agreeing on who takes part, healing included; forward and backward;
the exchange of gradients; moving the weights; held-out evaluation; what of a checkpoint holds up the run."""


class WorkerMetrics(Callback):
    """The counters of one worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        show_self(registry, "student")
        self._steps = Counter("student_steps_total", "Steps that counted, as this worker saw them.", registry=registry)
        self._tokens = Counter("student_tokens_total", "Tokens of those steps, of all workers.", registry=registry)
        self._loss = Gauge(
            "student_loss",
            "The last step's loss over the global batch: total, and its terms before their weights.",
            ["term"],
            registry=registry,
        )
        self._step_duration = Histogram(
            "student_step_duration_seconds",
            "From a step's begin to its moved weights.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._teacher_wait = Counter(
            "student_teacher_wait_seconds_total", "Time spent waiting for the teacher's answers.", registry=registry
        )
        self._phases = Counter(
            "student_phase_seconds_total",
            "Where this worker's time went: teacher_wait, quorum (healing included), compute, reduce (the exchange of "
            "gradients), update, evaluate, checkpoint (as far as it holds up the run).",
            ["phase"],
            registry=registry,
        )
        self.phase_seconds: dict[Phase, float] = dict.fromkeys(get_args(Phase), 0.0)
        """The same, for whoever shows it."""
        for phase in self.phase_seconds:
            self._phases.labels(phase)
        self._guard_stops = Counter(
            "student_guard_stops_total",
            "Stops by a guard before weights moved: not_finite (loss or gradient), max_loss.",
            ["reason"],
            registry=registry,
        )
        self._answer_bytes = Counter(
            "student_answer_bytes_total", "Bytes of the teacher's answers that came to this worker.", registry=registry
        )
        self._answers = Counter(
            "student_answers_total",
            "Answers about samples that came to this worker: read from a store, or given by the teacher at work.",
            ["source"],
            registry=registry,
        )
        self._answers_held = Gauge(
            "student_answers_held", "Micro-shards whose answers are here or on their way.", registry=registry
        )
        self._answers_held_bytes = Gauge(
            "student_answers_held_bytes", "What these answers take in memory, at most.", registry=registry
        )
        self._world_size = Gauge("student_world_size", "Workers that took part in the last step.", registry=registry)
        self._evaluation = Gauge(
            "student_evaluation", "The newest held-out evaluation, figure by figure.", ["figure"], registry=registry
        )
        self._healed = Counter(
            "student_healed_total", "How often this worker took its weights over from a peer.", registry=registry
        )
        self._uncommitted = Counter(
            "student_uncommitted_steps_total", "Steps that were voted down and done again.", registry=registry
        )
        age = Gauge("student_checkpoint_age_seconds", "Since the last checkpoint or the start.", registry=registry)
        age.set_function(self._checkpoint_age)
        self._saved = time.monotonic()

    def watch(self, prefetcher: Prefetcher) -> None:
        """Show what is held ahead of the step, and each wait for the teacher while it lasts."""
        self._answers_held.set_function(lambda: prefetcher.num_held)
        self._answers_held_bytes.set_function(lambda: prefetcher.held_bytes)
        prefetcher.on_wait = self._waited

    @contextmanager
    def timing(self, phase: Phase) -> Iterator[None]:
        """Count the time of the block as this phase's."""
        began = time.monotonic()
        try:
            with span(phase):
                yield
        finally:
            self._spent(phase, time.monotonic() - began)

    def stopped_by_guard(self, reason: Literal["not_finite", "max_loss"], loss: float) -> None:
        """Show why the run is about to stop, and the loss that it stops at."""
        self._guard_stops.labels(reason).inc()
        self._loss.labels("total").set(loss)

    def _waited(self, seconds: float) -> None:
        self._teacher_wait.inc(seconds)
        self._spent("teacher_wait", seconds)

    def _spent(self, phase: Phase, seconds: float) -> None:
        self._phases.labels(phase).inc(seconds)
        self.phase_seconds[phase] += seconds

    def answered(self, answer: Answer) -> None:
        """Count an answer by where it came from."""
        self._answers.labels("store").inc(answer.store_hits)
        self._answers.labels("teacher").inc(len(answer.payloads) - answer.store_hits)

    def membership(self, world_size: int) -> None:
        """Note how many workers take part."""
        self._world_size.set(world_size)

    def healed(self) -> None:
        """Count that this worker took its weights over from a peer."""
        self._healed.inc()

    def uncommitted(self) -> None:
        """Count a step that is to be done again."""
        self._uncommitted.inc()

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        """Count one committed step."""
        del run
        self._steps.inc()
        self._tokens.inc(step.tokens)
        for term, value in (("total", step.loss), ("cross_entropy", step.cross_entropy), ("kl", step.kl)):
            self._loss.labels(term).set(value)
        self._step_duration.observe(step.step_seconds)
        self._answer_bytes.inc(step.answer_bytes)

    def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
        """Show the figures that there are."""
        del run
        for name, value in evaluation.as_json().items():
            if value is not None:
                self._evaluation.labels(name).set(value)

    def checkpoint_seen(self) -> None:
        """Note that the run has a new checkpoint, whoever wrote it."""
        self._saved = time.monotonic()

    def _checkpoint_age(self) -> float:
        return time.monotonic() - self._saved
