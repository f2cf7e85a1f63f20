"""Training by one worker and by two, each a process with one thread on a core of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks._result import Value
from benchmarks._training.loop import Trained, step_ratio, training_row
from benchmarks._workers import ENVIRONMENT
from student_worker.elastic.lighthouse import Lighthouse

NAMES = {1: "one worker, a core", 2: "two workers, a core each"}
WORKER_SECONDS = 600.0
"""Far more than the slowest takes; a worker that hangs must not hang the benchmark."""


def measure_workers(quick: bool) -> tuple[list[dict[str, Value]], float | None]:
    """Return a row for each number of workers, and `two_workers_over_one`; no figure where there is but one core.

    The figure is the median of the rounds' ratios of the median step: the same global batch, and so the same steps, by
    one worker and by two. With two, each also exchanges gradients and moves all weights itself.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return [], None
    rounds = 1 if quick else 2
    measured: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for number in range(rounds):
        for count in (1, 2) if number % 2 == 0 else (2, 1):
            measured[count].append(_world(cores[:count], quick))
    digests = {one["weights"] for runs in measured.values() for one in runs}
    assert len(digests) == 1, f"one worker and two ended with other weights: {digests}"
    trained = {
        count: [Trained(one["step_seconds"], one["phases"], count) for one in runs] for count, runs in measured.items()
    }
    tokens = measured[1][0]["tokens"]
    rows = [training_row(NAMES[count], runs, tokens) for count, runs in trained.items()]
    return rows, step_ratio(*trained.values())


def _world(cores: list[int], quick: bool) -> dict[str, Any]:
    """Let a worker on each of the cores train, and return what the slowest of them says."""
    with ExitStack() as stack:
        address = stack.enter_context(Lighthouse()).address if len(cores) > 1 else ""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [stack.enter_context(_worker(core, len(cores), address, quick, folder)) for core in cores]
        for worker in workers:
            _wait_until_joined(worker, folder)
        # None steps before the others are there.
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            if worker.wait(WORKER_SECONDS) != 0:
                raise RuntimeError(_said(worker, folder))
        told: list[dict[str, Any]] = [json.loads((folder / f"{core}.json").read_text()) for core in cores]
    return max(told, key=lambda one: one["step_seconds"])


@contextmanager
def _worker(core: int, world: int, address: str, quick: bool, folder: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "benchmarks._training.worker", str(core), str(world), address, str(int(quick))]
    argv.append(str(folder / f"{core}.json"))
    with (folder / f"{core}.log").open("wb") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | ENVIRONMENT
        )
        try:
            with process:
                yield process
        finally:
            process.kill()


def _wait_until_joined(worker: subprocess.Popen[str], folder: Path) -> None:
    assert worker.stdout is not None
    # The native half of the group writes there too.
    if "joined\n" not in worker.stdout:
        raise RuntimeError(_said(worker, folder))


def _said(worker: subprocess.Popen[str], folder: Path) -> str:
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
    return f"a worker ended with {worker.wait(WORKER_SECONDS)}:\n{logs}"
