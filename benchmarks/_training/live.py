"""Training from a live teacher beside training on cross-entropy alone: the teacher elsewhere, and on the same cores.

Elsewhere: the real service with a backend that sleeps as long as a GPU would compute, and the machine's last core to
itself; the student has the first one, and one thread. On the same cores: a real model behind the real service, and
nobody remembers anything.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from benchmarks._measure import one_thread, seconds_of
from benchmarks._real_service import real_service
from benchmarks._result import Value
from benchmarks._slow_service import slow_service
from benchmarks._training.loop import (
    BATCH,
    InMemory,
    Trained,
    random_samples,
    small_llama,
    step_ratio,
    step_times,
    train,
    training_row,
)
from stillhouse.asking import Asking
from stillhouse.client import TeacherClient
from stillhouse.encodings import Sampled
from student_worker.corpus import Samples
from student_worker.fetching_ahead import PREFETCH_STEPS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY, BLOCK, SAMPLES = 2048, 128, 64
"""So few ids that making up the answers of the sleeping backend costs its core little beside what it sleeps for."""
HIDDEN, LAYERS = 512, 6
TEACHER_HIDDEN, TEACHER_LAYERS = 640, 8
ENCODING = Sampled(50)
TEACHER_SECONDS = 0.05
"""What the teacher sleeps for a micro-shard, two of which make a step: so little that its throughput suffices."""


def measure_live(quick: bool) -> tuple[list[dict[str, Value]], dict[str, float]]:
    """Return a row for each contestant, and `remote_over_plain` and `same_box_over_sum`.

    Both are medians of the rounds' ratios of median steps. The first: plain training's step over that with a teacher
    elsewhere. The second: what the teacher takes for a step's answers and plain training for a step, one after the
    other, over a step of both on the same cores, where by default nothing is fetched ahead; beside it stands a step
    that fetches ahead all the same.
    """
    rounds, steps = (1, 2) if quick else (3, 6)
    samples = random_samples(SAMPLES, BLOCK, VOCABULARY)
    rows, remote = _remote(samples, rounds, steps)
    more_rows, same_box = _same_box(samples, rounds, steps)
    return rows + more_rows, {"remote_over_plain": remote, "same_box_over_sum": same_box}


def _remote(samples: InMemory, rounds: int, steps: int) -> tuple[list[dict[str, Value]], float]:
    teacher = slow_service(TEACHER_SECONDS, VOCABULARY, {"cache": "off"}, has_own_core=True)
    with teacher as address, _one_core(), TeacherClient(address, timeout_seconds=120) as client:
        asking = _asking(client)
        teachers = {"one core, plain": None, "one core, teacher elsewhere": client}
        measured: dict[str, list[Trained]] = {name: [] for name in teachers}
        for number in range(rounds):
            for name in list(teachers)[:: 1 if number % 2 == 0 else -1]:
                measured[name].append(_train(samples, teachers[name], asking, steps))
    rows = [training_row(name, runs, BATCH * BLOCK) for name, runs in measured.items()]
    return rows, step_ratio(*measured.values())


def _same_box(samples: InMemory, rounds: int, steps: int) -> tuple[list[dict[str, Value]], float]:
    with tempfile.TemporaryDirectory() as name:
        teacher = small_llama(VOCABULARY, hidden=TEACHER_HIDDEN, layers=TEACHER_LAYERS)
        cast("PreTrainedModel", teacher.module).save_pretrained(Path(name))
        flags = ("--model", name, "--dtype", "float32", "--cache", "off")
        with real_service(*flags) as service, TeacherClient(service.address, timeout_seconds=120) as client:
            asking = _asking(client)
            request = asking.request(samples.samples[:BATCH])
            client.answer(request)
            plain: list[Trained] = []
            both: list[Trained] = []
            ahead: list[Trained] = []
            alone: list[float] = []
            for _ in range(rounds):
                plain.append(_train(samples, None, asking, steps))
                alone.append(statistics.median(seconds_of(lambda: client.answer(request)) for _ in range(steps)))
                both.append(_train(samples, client, asking, steps, prefetch_steps=0))
                ahead.append(_train(samples, client, asking, steps))
    tokens = BATCH * BLOCK
    rows = [
        training_row("plain", plain, tokens),
        {"teacher": "teacher alone", **step_times(alone), "tokens_s": round(tokens / statistics.median(alone), 1)},
        training_row("both on the same cores", both, tokens),
        training_row("both, fetching ahead", ahead, tokens),
    ]
    ratios = [
        (one.step_seconds + asked) / other.step_seconds for one, asked, other in zip(plain, alone, both, strict=True)
    ]
    return rows, statistics.median(ratios)


def _train(
    samples: InMemory, teacher: TeacherClient | None, asking: Asking, steps: int, prefetch_steps: int = PREFETCH_STEPS
) -> Trained:
    student = small_llama(VOCABULARY, hidden=HIDDEN, layers=LAYERS)
    dataset = cast("Samples", samples)
    return train(student, dataset, teacher, asking, prefetch_steps=prefetch_steps, num_steps=steps)


def _asking(client: TeacherClient) -> Asking:
    return Asking(ENCODING, 1.0, VOCABULARY, client.describe().fingerprint)


@contextmanager
def _one_core() -> Iterator[None]:
    """Give this process the first core alone, and torch one thread, until the end."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with one_thread():
            yield
    finally:
        os.sched_setaffinity(0, cores)
