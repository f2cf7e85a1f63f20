"""Contestants timed fairly: one after another in every round, so that a slow moment of the machine hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

WARM_UP_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds over the rounds. The least is what the machine can do; the others tell how quiet it was."""

    minimum: float
    median: float
    maximum: float

    def milliseconds(self) -> dict[str, float]:
        """Return the three, for a row of the table."""
        return {
            "min_ms": round(1e3 * self.minimum, 4),
            "median_ms": round(1e3 * self.median, 4),
            "max_ms": round(1e3 * self.maximum, 4),
        }


def interleave(
    contestants: Mapping[str, Callable[[], object]], rounds: int, *, warm_up_rounds: int = WARM_UP_ROUNDS
) -> dict[str, Timing]:
    """Return the timing of each contestant over `rounds` rounds, after a warm-up that counts for none."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warm_up_rounds + rounds):
        for name, run in contestants.items():
            elapsed = seconds_of(run)
            if number >= warm_up_rounds:
                seconds[name].append(elapsed)
    return {name: Timing(min(times), statistics.median(times), max(times)) for name, times in seconds.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Give torch one thread, until the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long something takes, what a GPU still does of it included."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
