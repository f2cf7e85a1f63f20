"""How long does each command take to its help, a teacher until it is ready, and a worker to its first step?

Each in a process of its own, from its start. The teacher is the real SmolLM2, converted once before; the worker trains
two of its layers on 64 blocks of 64 tokens of Python's own help topics, prepared once before.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks._measure import seconds_of
from benchmarks._real_service import real_service
from benchmarks._result import Result, Value

COMMANDS = (
    (),
    ("teacher", "serve"),
    ("student", "train"),
    ("capture",),
    ("store", "verify"),
    ("data", "inspect"),
    ("eval",),
    ("compare",),
    ("generate",),
    ("doctor",),
    ("bench", "teacher"),
    ("demo",),
)
_POLL_SECONDS = 0.01
_WORKER_SECONDS = 600.0


def measure(quick: bool) -> Result:
    """Measure by turns.

    Figures: `help_seconds`, the least time of the slowest command; `ready_seconds` and `first_step_seconds`, the least
    of each.
    """
    rounds, long_rounds = (1, 1) if quick else (3, 2)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for command in COMMANDS:
            name = " ".join(("stillhouse", *command, "--help"))
            seconds.setdefault(name, []).append(seconds_of(lambda: _stillhouse(*command, "--help")))  # noqa: B023
    help_seconds = max(min(times) for times in seconds.values())
    ready, first = "teacher: ready", "worker: first step"
    with tempfile.TemporaryDirectory() as name:
        # What is converted and prepared once is, before any round counts.
        warm_up = 0 if quick else 1
        for number in range(warm_up + long_rounds):
            began = time.perf_counter()
            with real_service("--model", "smollm2", "--dtype", "float32") as service:
                is_ready = time.perf_counter() - began
                first_step = _first_step(service.address, Path(name), f"run-{number}")
            if number >= warm_up:
                seconds.setdefault(ready, []).append(is_ready)
                seconds.setdefault(first, []).append(first_step)
    rows: list[dict[str, Value]] = [
        {
            "what": what,
            "min_s": round(min(times), 3),
            "median_s": round(statistics.median(times), 3),
            "max_s": round(max(times), 3),
        }
        for what, times in seconds.items()
    ]
    figures = {
        "help_seconds": help_seconds,
        "ready_seconds": min(seconds[ready]),
        "first_step_seconds": min(seconds[first]),
    }
    return Result("startup", rounds, rows, figures)


def _stillhouse(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "stillhouse", *arguments], check=True, capture_output=True)


def _first_step(address: str, folder: Path, name: str) -> float:
    run = folder / name
    data = ["--data", "builtin:pydoc-topics", "--block-size", "64", "--held-out-samples", "4"]
    student = ["--student", "causal_lm", "--model", "smollm2", "--keep-layers", "0,29", "--encoding", "sampled:50"]
    bounds = ["--max-steps", "2", "--global-batch-size", "4", "--micro-shards", "1", "--eval-steps", "0"]
    argv = [sys.executable, "-m", "stillhouse", "student", "train", "--teacher", address, *data, *student, *bounds]
    began = time.perf_counter()
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([*argv, "--output-dir", str(run)], stdout=log, stderr=subprocess.STDOUT)
    try:
        while not _steps(run / "metrics.jsonl"):
            if process.poll() not in (None, 0) or time.perf_counter() - began > _WORKER_SECONDS:
                raise RuntimeError((folder / f"{name}.log").read_text(errors="replace")[-2000:])
            time.sleep(_POLL_SECONDS)
        return time.perf_counter() - began
    finally:
        process.wait(_WORKER_SECONDS)


def _steps(file: Path) -> Sequence[str]:
    if not file.exists():
        return ()
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.endswith("}") and json.loads(line)["event"] == "step"]
