"""The trainer's own loop over a small student, for measuring: what stands around it is the caller's."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._result import Value
from benchmarks._training.phases import StepPhases, phase_columns
from stillhouse.asking import Asking
from stillhouse.data import NO_LABEL, Order, Sample
from stillhouse.payloads import Payload
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, Sequence, TeacherDescription
from student_worker.cadence import Cadence
from student_worker.callbacks import Callback, RunView, StepRecord
from student_worker.corpus import Samples
from student_worker.elastic.group import Group, SoloGroup
from student_worker.elastic.reduction import gradient_sum
from student_worker.metrics import WorkerMetrics
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

BATCH, MICRO_SHARDS = 4, 2
FIRST_STEPS = 2
"""Not counted: before the first step there is no step behind which anything could be fetched."""


@dataclass(frozen=True)
class InMemory:
    """The part of a `PackedDataset` that the trainer uses, in memory."""

    samples: tuple[Sample, ...]
    fingerprint: str = "memory"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def whole_sample(token_ids: NDArray[np.uint32]) -> Sample:
    """Return a sample of one document: each token's label is the next one, and the last has none."""
    labels = np.append(token_ids[1:], NO_LABEL).astype(np.int64)
    return Sample(token_ids, labels, labels != NO_LABEL, (len(token_ids),))


def random_samples(count: int, length: int, vocabulary_size: int) -> InMemory:
    """Return samples of tokens drawn at random, the same ones each time."""
    draws = (np.random.default_rng(index).integers(0, vocabulary_size, length) for index in range(count))
    return InMemory(tuple(whole_sample(ids.astype(np.uint32)) for ids in draws))


def step_times(seconds: SequenceOf[float]) -> dict[str, Value]:
    """Return what a table says of the steps of several runs."""
    return {
        "step_min_ms": round(1e3 * min(seconds), 2),
        "step_median_ms": round(1e3 * median(seconds), 2),
        "step_max_ms": round(1e3 * max(seconds), 2),
    }


def training_row(name: str, runs: SequenceOf[Trained], tokens: int) -> dict[str, Value]:
    """Return what a table says of a contestant's runs, of so many tokens a step; what its quickest step was spent on.

    In the quickest one, since the mean of a slow run says what the machine did besides.
    """
    seconds = [run.step_seconds for run in runs]
    quickest = min(runs, key=lambda run: run.step_seconds)
    return {
        "teacher": name,
        **step_times(seconds),
        "tokens_s": round(tokens / median(seconds), 1),
        **phase_columns(quickest.phases),
    }


def step_ratio(ours: SequenceOf[Trained], theirs: SequenceOf[Trained]) -> float:
    """Return the median of the rounds' ratios of our median step over theirs."""
    return median(one.step_seconds / other.step_seconds for one, other in zip(ours, theirs, strict=True))


class DistantTeacher(TeacherLogitsProvider):
    """Gives answers that it has already, after a while."""

    def __init__(self, latency_seconds: float, known: dict[Sequence, Payload], description: TeacherDescription) -> None:
        self._latency_seconds = latency_seconds
        self._known = known
        self._description = description

    def describe(self) -> TeacherDescription:
        """Return what it was given."""
        return self._description

    def answer(self, request: LogitsRequest) -> Answer:
        """Sleep, then answer."""
        time.sleep(self._latency_seconds)
        payloads = tuple(self._known[sequence] for sequence in request.sequences)
        return Answer(payloads, self._description.fingerprint)


class _Steps(Callback):
    """Remembers each step."""

    def __init__(self, phases: StepPhases) -> None:
        self._phases = phases
        self.records: list[StepRecord] = []

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        """Remember it."""
        del run
        self._phases.end_step(step.step_seconds)
        self.records.append(step)


@dataclass(frozen=True)
class Trained:
    """Of the counted steps of one short run: the median duration of one, and the mean of what it was spent on."""

    step_seconds: float
    phases: dict[str, float]
    world_size: int = 1

    @property
    def waited_seconds(self) -> float:
        """How long a step waited for the teacher, on average."""
        return self.phases["teacher_wait"]


def train(
    student: CausalLMStudent,
    samples: Samples,
    teacher: TeacherLogitsProvider | None,
    asking: Asking,
    *,
    prefetch_steps: int,
    num_steps: int,
    batch: int = BATCH,
    micro_shards: int = MICRO_SHARDS,
    join: Callable[[WorkerState], Group] = SoloGroup,
) -> Trained:
    """Train for so many steps; with no teacher, on cross-entropy alone.

    Args:
        student: is changed.
        samples: what it learns from.
        teacher: what it learns from too, None for none.
        asking: what the teacher is asked.
        prefetch_steps: so many steps ahead of their use.
        num_steps: that count. `FIRST_STEPS` come before them, and after them as many as are fetched ahead: while these
            last ones are done nothing is asked any more.
        batch: samples of a step, of all workers together.
        micro_shards: parts of a step.
        join: gives the group to train in.
    """
    stopping = threading.Event()
    counted = slice(FIRST_STEPS, FIRST_STEPS + num_steps)
    last_step = counted.stop + prefetch_steps
    steps = Steps(samples, Order(len(samples), 0, samples.fingerprint), batch, micro_shards)

    def piece(key: Key) -> Piece:
        if teacher is None:
            return Piece(None, 0)
        step, shard = key
        places = [("train", index) for index in steps.shard_ids(step)[shard]]
        return Piece(asking.request(steps.shard(step, shard), places), 0)

    asked: Any = PatientTeacher(teacher, 60.0, stopping) if teacher is not None else None
    prefetcher = Prefetcher(asked, piece, max_bytes=2**30, stopping=stopping)
    optimizer = StudentOptimizer(student.module)
    state = WorkerState(student.module, optimizer, {})
    metrics = WorkerMetrics()
    phases = StepPhases(metrics)
    told = _Steps(phases)
    with tempfile.TemporaryDirectory() as folder, phases.watching(student), join(state) as group:
        trainer = Trainer(
            Parts(
                student=student,
                optimizer=optimizer,
                state=state,
                steps=steps,
                prefetcher=prefetcher,
                evaluator=None,
                group=group,
                tree=gradient_sum("exact", micro_shards, optimizer.num_parameters),
                objective=Objective(asking.temperature, float(teacher is None), asking.vocabulary_size),
                schedule=Schedule(1e-4, 0, last_step, "constant"),
                cadence=Cadence(last_step, last_step, 0, last_step + 1),
                view=RunView(Path(folder), "benchmark", 0, last_step, is_first=True),
                stopping=stopping,
                metrics=metrics,
                callbacks=[told],
                prefetch_steps=prefetch_steps,
            )
        )
        trainer.run()
    prefetcher.close()
    records = told.records[counted]
    world_sizes = {record.world_size for record in records}
    assert len(world_sizes) == 1, f"workers came or went: {world_sizes}"
    return Trained(median(record.step_seconds for record in records), phases.mean(counted), world_sizes.pop())


def small_llama(vocabulary_size: int, *, hidden: int, layers: int) -> CausalLMStudent:
    """Return a Llama with random weights, the same one each time, its head tied to its embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        tie_word_embeddings=True,
    )
    return CausalLMStudent(LlamaForCausalLM(config))
