"""How long do the others wait when a worker is killed, joins, or freezes?

Real processes, with a lighthouse as the launcher starts it. What a step computes is slept through.
"""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks._result import Result, Value
from benchmarks._workers import ENVIRONMENT
from stillhouse.processes import Child
from student_worker.elastic.lighthouse import Lighthouse

STAYING = ("worker-0", "worker-1")
VICTIM = "worker-2"
STEP_SECONDS = 0.4
"""What one worker alone sleeps in a step."""
TIMEOUT_SECONDS = 3.0
"""How long peers wait for each other within a step: the recipe's `step_timeout_seconds`."""
CALM_STEPS = 8
WAIT_SECONDS = 120.0


def measure(quick: bool) -> Result:
    """Let two workers of a student of 54 million parameters (1 million in the quick form) go on while a third one dies.

    `kill_to_next_step_seconds`: from SIGKILL to the others' next committed step. `join_pause_seconds`: by how much the
    step in which it comes back is longer than the others' usual ones; it takes weights and moments from a peer.
    `frozen_peer_dropped_seconds`: from SIGSTOP to the others' next committed step, the timeout within a step being 3 s;
    `rejoin_after_waking_seconds`: from SIGCONT to the first step of all three. Each is the worst of the rounds.
    """
    rounds = 2
    elements = 1_000_000 if quick else 54_000_000
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lighthouse = stack.enter_context(Lighthouse())
        workers = _Workers(folder, lighthouse.address, elements)
        stack.callback(workers.end)
        for name in (*STAYING, VICTIM):
            workers.start(name)
        workers.wait_for("all three", lambda: workers.world() == 3)
        table = [{"round": number, "parameters": elements, **_round(workers)} for number in range(rounds)]
    figures = {name: max(float(row[name] or 0) for row in table) for name in table[0] if name.endswith("_seconds")}
    return Result("recovery", rounds, table, figures)


def _round(workers: _Workers) -> dict[str, Value]:
    workers.run_calmly()
    usual = workers.usual_interval()
    killed = workers.signal(VICTIM, signal.SIGKILL)
    kill_to_next = workers.next_commit(killed, 2) - killed
    workers.run_calmly()
    alone = workers.usual_interval()
    before = time.monotonic()
    workers.start(VICTIM)
    workers.next_commit(before, 3)
    pause = workers.longest_interval(before, 3) - max(usual, alone)
    workers.run_calmly()
    frozen = workers.signal(VICTIM, signal.SIGSTOP)
    dropped = workers.next_commit(frozen, 2) - frozen
    workers.run_calmly()
    woken = workers.signal(VICTIM, signal.SIGCONT)
    rejoined = workers.next_commit(woken, 3) - woken
    return {
        "usual_step_ms": round(1e3 * usual, 1),
        "kill_to_next_step_seconds": round(kill_to_next, 3),
        "join_pause_seconds": round(max(0.0, pause), 3),
        "frozen_peer_dropped_seconds": round(dropped, 3),
        "rejoin_after_waking_seconds": round(rejoined, 3),
    }


class _Workers:
    """The processes, and the moments of their commits."""

    def __init__(self, folder: Path, lighthouse: str, elements: int) -> None:
        self._folder = folder
        self._arguments = (lighthouse, str(elements))
        self._processes: dict[str, Child] = {}

    def start(self, name: str) -> None:
        lighthouse, elements = self._arguments
        argv = [sys.executable, "-m", "benchmarks._recovery_worker", lighthouse, name, str(self._log(name)), elements]
        argv += [str(STEP_SECONDS), str(TIMEOUT_SECONDS)]
        self._processes[name] = Child(name, argv, self._folder / f"{name}.log", ENVIRONMENT)

    def signal(self, name: str, number: signal.Signals) -> float:
        """Send it, and return the moment."""
        self._processes[name].signal(number)
        return time.monotonic()

    def world(self) -> int:
        commits = self._commits(STAYING[0])
        return int(commits[-1]["world"]) if commits else 0

    def run_calmly(self) -> None:
        """Let some steps pass in which nobody comes or goes."""
        since = len(self._commits(STAYING[0]))
        self.wait_for("calm steps", lambda: len(self._commits(STAYING[0])) >= since + CALM_STEPS)

    def usual_interval(self) -> float:
        moments = [float(commit["at"]) for commit in self._commits(STAYING[0])[-CALM_STEPS:]]
        return statistics.median(late - early for early, late in itertools.pairwise(moments))

    def next_commit(self, after: float, world: int) -> float:
        """Wait for a step of so many workers, and return when the last of those who stay had it."""

        def moments(name: str) -> list[float]:
            return [
                float(commit["at"])
                for commit in self._commits(name)
                if commit["at"] > after and commit["world"] == world
            ]

        self.wait_for(f"a step of {world}", lambda: all(moments(name) for name in STAYING))
        return max(moments(name)[0] for name in STAYING)

    def longest_interval(self, after: float, world: int) -> float:
        """Return how long the first step of so many workers took, for the slower of those who stay."""
        intervals: list[float] = []
        for name in STAYING:
            pairs = itertools.pairwise(self._commits(name))
            intervals.append(next(b["at"] - a["at"] for a, b in pairs if b["at"] > after and b["world"] == world))
        return max(intervals)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            for process in self._processes.values():
                if process.poll() not in (None, -signal.SIGKILL):
                    raise RuntimeError(f"{process.name} ended with {process.poll()}:\n{process.tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited in vain for {what}")
            time.sleep(0.01)

    def end(self) -> None:
        for process in self._processes.values():
            process.stop(grace_seconds=0)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"

    def _commits(self, name: str) -> list[dict[str, Any]]:
        path = self._log(name)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
