"""How much of a teacher's latency does fetching ahead of the step hide?

The teacher's answers are made beforehand: what is waited for is the latency alone, and it takes no processor time.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, cast

import numpy as np
import torch

from benchmarks._result import Result, Value
from stillhouse.asking import Asking
from stillhouse.data import Order, PackedDataset, Sample
from stillhouse.encodings import TopK
from stillhouse.fixtures import FixtureTeacher
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, Sequence, TeacherDescription
from student_worker.cadence import Cadence
from student_worker.callbacks import Callback, RunView, StepRecord
from student_worker.elastic.group import SoloGroup
from student_worker.elastic.reduction import gradient_sum
from student_worker.optimizer import StudentOptimizer
from student_worker.parts import Parts
from student_worker.patience import PatientTeacher
from student_worker.prefetch import Key, Piece, Prefetcher
from student_worker.schedule import Schedule
from student_worker.shard_step import Objective
from student_worker.state import WorkerState
from student_worker.steps import Steps
from student_worker.students.causal_lm import CausalLMStudent
from student_worker.trainer import Trainer

VOCABULARY, BLOCK, SAMPLES, BATCH, MICRO_SHARDS = 1024, 64, 16, 4, 2
LATENCY_OVER_STEP = 0.75
"""Shorter than the step: of a longer one, nothing could hide more than a step's worth."""
FIRST_STEPS = 2
"""Not counted: before the first step there is no step behind which anything could be fetched."""
ENCODING = TopK(16)


class DistantTeacher(TeacherLogitsProvider):
    """Gives answers that it has already, after a while."""

    def __init__(self, latency_seconds: float, known: dict[Sequence, Any]) -> None:
        self._latency_seconds = latency_seconds
        self._known = known

    def describe(self) -> TeacherDescription:
        """Return what the fixture says."""
        return FixtureTeacher(VOCABULARY).describe()

    def answer(self, request: LogitsRequest) -> Answer:
        """Sleep, then answer."""
        time.sleep(self._latency_seconds)
        return Answer(tuple(self._known[sequence] for sequence in request.sequences), "fixture")


@dataclass(frozen=True)
class Samples:
    """The part of a `PackedDataset` that the trainer uses, in memory."""

    samples: tuple[Sample, ...]
    fingerprint: str = "memory"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class Waits(Callback):
    """Remembers how long each step waited for the teacher."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        """Remember it."""
        del run
        self.seconds.append(step.teacher_wait_seconds)


def measure(quick: bool) -> Result:
    """Train a small Llama through the real loop, the teacher at hand, far away, and far away with prefetch.

    `latency_hidden` is the share of the waiting that prefetch takes away: 1 - (waited for answers with it) / (waited
    without it), of all counted steps. `hidden_by_step_time` is the same told by the clock: (step without prefetch -
    step with it) / (step without prefetch - step with the teacher at hand), of the median steps in each contestant's
    best round; it holds the cost of fetching too, and the machine's noise.
    """
    rounds, steps = (2, 8) if quick else (7, 24)
    samples = _samples()
    asking = Asking(ENCODING, 1.0, VOCABULARY, "")
    questions = asking.request(samples.samples).sequences
    answers = FixtureTeacher(VOCABULARY).answer(asking.request(samples.samples)).payloads
    known = dict(zip(questions, answers, strict=True))
    latency = LATENCY_OVER_STEP * min(_train(samples, asking, known, 0.0, 2, steps)[0] for _ in range(2))
    contestants: dict[str, tuple[float, int]] = {
        "at hand": (0.0, 2),
        "far away, no prefetch": (latency, 0),
        "far away, prefetch": (latency, 2),
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (delay, prefetch_steps) in contestants.items():
            measured[name].append(_train(samples, asking, known, delay, prefetch_steps, steps))
    rows: list[dict[str, Value]] = [
        {
            "teacher": name,
            "latency_ms": round(1e3 * contestants[name][0], 2),
            "waited_ms": round(1e3 * mean(waited for _, waited in times), 3),
            "step_min_ms": round(1e3 * min(step for step, _ in times), 2),
            "step_median_ms": round(1e3 * median(step for step, _ in times), 2),
            "step_max_ms": round(1e3 * max(step for step, _ in times), 2),
        }
        for name, times in measured.items()
    ]
    _, exposed_wait, hidden_wait = (sum(waited for _, waited in times) for times in measured.values())
    at_hand, exposed, hidden = (min(step for step, _ in times) for times in measured.values())
    figures = {
        "latency_hidden": 1 - hidden_wait / exposed_wait,
        "hidden_by_step_time": (exposed - hidden) / (exposed - at_hand),
    }
    return Result("training", rounds, rows, figures)


def _train(
    samples: Samples, asking: Asking, known: dict[Sequence, Any], latency: float, prefetch_steps: int, steps: int
) -> tuple[float, float]:
    """Return the median duration of a step of one short run, and how long a step waited for answers on average."""
    stopping = threading.Event()
    dataset = cast("PackedDataset", samples)
    order = Steps(dataset, Order(len(samples), 0, samples.fingerprint), BATCH, MICRO_SHARDS)
    prefetcher = Prefetcher(
        PatientTeacher(DistantTeacher(latency, known), 60.0, stopping),
        _questions(asking, order),
        max_bytes=2**30,
        stopping=stopping,
    )
    student = _student()
    optimizer = StudentOptimizer(student.module)
    state = WorkerState(student.module, optimizer, {})
    waits = Waits()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            Parts(
                student=student,
                optimizer=optimizer,
                state=state,
                steps=order,
                prefetcher=prefetcher,
                evaluator=None,
                group=SoloGroup(state),
                tree=gradient_sum("exact", MICRO_SHARDS, optimizer.num_parameters),
                objective=Objective(1.0, 0.0, VOCABULARY),
                schedule=Schedule(1e-4, 0, steps, "constant"),
                cadence=Cadence(steps, steps, 0, steps + 1),
                view=RunView(Path(folder), "benchmark", 0, steps, is_first=True),
                stopping=stopping,
                callbacks=[waits],
                prefetch_steps=prefetch_steps,
            )
        )
        outcome = trainer.run()
    prefetcher.close()
    return median(outcome.step_seconds[FIRST_STEPS:]), mean(waits.seconds[FIRST_STEPS:])


def _questions(asking: Asking, steps: Steps) -> Callable[[Key], Piece]:
    return lambda key: Piece(asking.request(steps.shard(*key)), 0)


def _student() -> CausalLMStudent:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    return CausalLMStudent(LlamaForCausalLM(config))


def _samples() -> Samples:
    made = []
    for index in range(SAMPLES):
        ids = np.random.default_rng(index).integers(0, VOCABULARY, BLOCK).astype(np.uint32)
        labels = np.append(ids[1:], -100).astype(np.int64)
        made.append(Sample(ids, labels, labels != -100, (BLOCK,)))
    return Samples(tuple(made))
