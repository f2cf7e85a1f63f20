"""The trainer's own loop over a small student, for measuring: what stands around it is the caller's."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._result import Value
from stillhouse.asking import Asking
from stillhouse.data import NO_LABEL, Order, Sample
from stillhouse.payloads import Payload
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, Sequence, TeacherDescription
from student_worker.cadence import Cadence
from student_worker.callbacks import Callback, RunView, StepRecord
from student_worker.corpus import Samples
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


class _Waits(Callback):
    """Remembers how long each step waited for the teacher."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        """Remember it."""
        del run
        self.seconds.append(step.teacher_wait_seconds)


@dataclass(frozen=True)
class Trained:
    """Of the counted steps of one short run: the median duration of one, and how long each waited on average."""

    step_seconds: float
    waited_seconds: float


def train(
    student: CausalLMStudent,
    samples: Samples,
    teacher: TeacherLogitsProvider | None,
    asking: Asking,
    *,
    prefetch_steps: int,
    num_steps: int,
) -> Trained:
    """Train for so many steps; with no teacher, on cross-entropy alone."""
    stopping = threading.Event()
    steps = Steps(samples, Order(len(samples), 0, samples.fingerprint), BATCH, MICRO_SHARDS)

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
    waits = _Waits()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            Parts(
                student=student,
                optimizer=optimizer,
                state=state,
                steps=steps,
                prefetcher=prefetcher,
                evaluator=None,
                group=SoloGroup(state),
                tree=gradient_sum("exact", MICRO_SHARDS, optimizer.num_parameters),
                objective=Objective(asking.temperature, float(teacher is None), asking.vocabulary_size),
                schedule=Schedule(1e-4, 0, num_steps, "constant"),
                cadence=Cadence(num_steps, num_steps, 0, num_steps + 1),
                view=RunView(Path(folder), "benchmark", 0, num_steps, is_first=True),
                stopping=stopping,
                callbacks=[waits],
                prefetch_steps=prefetch_steps,
            )
        )
        outcome = trainer.run()
    prefetcher.close()
    counted = waits.seconds[FIRST_STEPS:]
    return Trained(median(outcome.step_seconds[FIRST_STEPS:]), sum(counted) / len(counted))


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
