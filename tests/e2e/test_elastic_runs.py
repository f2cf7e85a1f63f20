"""The command as a user starts it: workers that join and leave a run while it goes on, and threads nobody named."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from student_worker.elastic.lighthouse import Lighthouse
from tests import forked

WAIT_SECONDS = 120.0
STEPS = 150

Start = Callable[..., "forked.Popen"]


def wait_until(condition: Callable[[], bool], what: str, *processes: forked.Popen) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        for process in processes:
            assert process.poll() is None, f"ended with {process.poll()} while waiting for {what}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def steps(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [record for record in map(json.loads, whole) if record["event"] == "step"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


@pytest.fixture
def environment(student_environment: dict[str, str]) -> dict[str, str]:
    """Of a user who names no number of threads."""
    variables = {**os.environ, **student_environment, "STUDENT_RUN_TOKEN": "the-secret-of-these-tests"}
    del variables["OMP_NUM_THREADS"]
    return variables


@pytest.fixture
def start(student_argv: Callable[..., list[str]], environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts the command, its output in a file of its own, and leaves none behind."""
    started: list[forked.Popen] = []

    def run(output_dir: Path, **keys: Any) -> forked.Popen:
        with (tmp_path / f"worker-{len(started)}.txt").open("w") as log:
            argv = student_argv(output_dir, max_steps=STEPS, save_steps=20, micro_shards=2, prefetch_steps=2, **keys)
            started.append(forked.Popen(argv, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.long
def test_workers_that_join_and_leave_while_it_trains_change_no_bit(
    start: Start, environment: dict[str, str], tmp_path: Path
) -> None:
    def said(worker: int, words: str) -> bool:
        return words in (tmp_path / f"worker-{worker}.txt").read_text()

    def release(step: int) -> None:
        (tmp_path / f"between-steps@{step}.go").touch()

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert start(alone).wait(WAIT_SECONDS) == 0
    held = ",".join(f"between-steps@{step}=hold" for step in (5, 60, 120))
    environment |= {"STILLHOUSE_FAILPOINTS": held, "STILLHOUSE_FAILPOINTS_DIR": str(tmp_path)}
    with Lighthouse() as lighthouse:
        first = start(shared, lighthouse=lighthouse.address)
        second = start(shared, lighthouse=lighthouse.address)
        wait_until(lambda: said(1, '"training"') and said(2, '"training"'), "both workers", first, second)
        release(5)
        wait_until(lambda: len(steps(shared)) == 60, "step 60", first, second)
        third = start(shared, lighthouse=lighthouse.address)
        wait_until(lambda: said(3, '"training"'), "the third worker", first, second, third)
        release(60)
        assert third.wait(WAIT_SECONDS) == 2
        assert said(3, "micro_shards")
        wait_until(lambda: len(steps(shared)) == 120, "step 120", first, second)
        first.send_signal(signal.SIGTERM)
        release(120)
        assert first.wait(WAIT_SECONDS) == 143
        assert second.wait(WAIT_SECONDS) == 0
    assert [step["step"] for step in steps(shared)] == list(range(1, STEPS + 1))
    worlds = [step["world_size"] for step in steps(shared)]
    assert worlds[60:119] == [2] * 59
    assert worlds[-1] == 1
    ours, theirs = weights(shared), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
