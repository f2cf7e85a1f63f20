"""How much of a teacher's latency does fetching ahead of the step hide, and how near to plain training does one come?

For the first the teacher's answers are made beforehand: what is waited for is the latency alone, and it takes no
processor time. For the second see `_training.offline` (from a store), `_training.live` (from a live teacher) and
`_training.workers` (more workers than one).
"""

from __future__ import annotations

from statistics import mean
from typing import Any, cast

from benchmarks._result import Result, Value
from benchmarks._training.live import measure_live
from benchmarks._training.loop import DistantTeacher, InMemory, Trained, random_samples, small_llama, step_times, train
from benchmarks._training.offline import measure_offline
from benchmarks._training.workers import measure_workers
from stillhouse.asking import Asking
from stillhouse.encodings import TopK
from stillhouse.fixtures import FixtureTeacher
from stillhouse.request import Sequence
from student_worker.corpus import Samples

VOCABULARY, BLOCK, SAMPLES = 1024, 64, 16
LATENCY_OVER_STEP = 0.75
"""Shorter than the step: of a longer one, nothing could hide more than a step's worth."""
ENCODING = TopK(16)


def measure(quick: bool) -> Result:
    """Train a small Llama through the real loop, the teacher at hand, far away, and far away with prefetch.

    `latency_hidden` is the share of the waiting that prefetch takes away: 1 - (waited for answers with it) / (waited
    without it), of all counted steps. `hidden_by_step_time` is the same told by the clock: (step without prefetch -
    step with it) / (step without prefetch - step with the teacher at hand), of the median steps in each contestant's
    best round; it holds the cost of fetching too, and the machine's noise. `offline_over_plain`: tokens a second from a
    store over those of training on cross-entropy alone, with no teacher. `remote_over_plain`, `same_box_over_sum`: see
    `_training.live.measure_live`; `two_workers_over_one`: see `_training.workers.measure_workers`.
    """
    rounds, steps = (2, 4) if quick else (2, 12)
    samples = random_samples(SAMPLES, BLOCK, VOCABULARY)
    asking = Asking(ENCODING, 1.0, VOCABULARY, "")
    questions = asking.request(samples.samples).sequences
    answers = FixtureTeacher(VOCABULARY).answer(asking.request(samples.samples)).payloads
    known = dict(zip(questions, answers, strict=True))
    latency = LATENCY_OVER_STEP * min(_train(samples, asking, known, 0.0, 2, steps).step_seconds for _ in range(2))
    contestants: dict[str, tuple[float, int]] = {
        "at hand": (0.0, 2),
        "far away, no prefetch": (latency, 0),
        "far away, prefetch": (latency, 2),
    }
    measured: dict[str, list[Trained]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (delay, prefetch_steps) in contestants.items():
            measured[name].append(_train(samples, asking, known, delay, prefetch_steps, steps))
    rows: list[dict[str, Value]] = [
        {
            "teacher": name,
            "latency_ms": round(1e3 * contestants[name][0], 2),
            "waited_ms": round(1e3 * mean(one.waited_seconds for one in runs), 3),
            **step_times([one.step_seconds for one in runs]),
        }
        for name, runs in measured.items()
    ]
    _, exposed_wait, hidden_wait = (sum(one.waited_seconds for one in runs) for runs in measured.values())
    at_hand, exposed, hidden = (min(one.step_seconds for one in runs) for runs in measured.values())
    offline_rows, offline_over_plain = measure_offline(quick)
    live_rows, live_figures = measure_live(quick)
    worker_rows, two_over_one = measure_workers(quick)
    figures = {
        "latency_hidden": 1 - hidden_wait / exposed_wait,
        "hidden_by_step_time": (exposed - hidden) / (exposed - at_hand),
        "offline_over_plain": offline_over_plain,
        **live_figures,
    }
    if two_over_one is not None:
        figures["two_workers_over_one"] = two_over_one
    return Result("training", rounds, [*rows, *offline_rows, *live_rows, *worker_rows], figures)


def _train(
    samples: InMemory, asking: Asking, known: dict[Sequence, Any], latency: float, prefetch_steps: int, steps: int
) -> Trained:
    teacher = DistantTeacher(latency, known, FixtureTeacher(VOCABULARY).describe())
    student = small_llama(VOCABULARY, hidden=128, layers=2)
    dataset = cast("Samples", samples)
    return train(student, dataset, teacher, asking, prefetch_steps=prefetch_steps, num_steps=steps)
