"""Runs whose teacher is at an http address: the bits of gRPC, also where the teacher is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.processes import Child
from tests import forked
from tests.e2e.conftest import ENVIRONMENT, READY_SECONDS, serving
from tests.e2e.test_student_runs import assert_same_bits, records


def until(condition: Callable[[], object], seconds: float = READY_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("encoding", ["hidden", "top_k:8"])
def test_a_run_over_http_ends_with_the_bits_of_one_over_grpc(
    train: Any, teacher: dict[str, str], tmp_path: Path, encoding: str
) -> None:
    for name, address in (("grpc", teacher["grpc"]), ("http", teacher["http"])):
        run = train(tmp_path / name, teacher=address, encoding=encoding, max_steps=6, eval_steps=3)
        assert run.returncode == 0, run.stderr
    assert_same_bits(tmp_path / "grpc", tmp_path / "http")
    told = [[record["kl"] for record in records(tmp_path / name, "evaluation")] for name in ("grpc", "http")]
    assert told[0] == told[1]


@pytest.mark.long
def test_a_teacher_that_is_killed_and_started_again_changes_no_bit(tmp_path: Path) -> None:
    """With -9, in the middle of the run; the service that comes back is at the same port."""
    data = tmp_path / "shards"
    data.mkdir()
    np.random.default_rng(0).integers(0, 256, 40_000).astype("<u4").tofile(data / "a.bin")
    environment = {**os.environ, **ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def argv(address: str, name: str) -> list[str]:
        words = [sys.executable, "-m", "student_worker", "train", "--teacher", address, "--student", "fixture"]
        words += ["--data", str(data), "--block-size", "32", "--max-steps", "150", "--global-batch-size", "4"]
        return [*words, "--teacher-wait-seconds", "120", "--output-dir", str(tmp_path / name), "--http-port", "0"]

    def losses(name: str) -> list[float]:
        path = tmp_path / name / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [record["loss"] for record in map(json.loads, lines) if record["event"] == "step"]

    with serving(tmp_path, "--backend", "fixture") as addresses:
        whole = forked.run(argv(addresses["http"], "whole"), env=environment, timeout=120)
        assert whole.returncode == 0, whole.stderr
    port = addresses["http"].rpartition(":")[2]

    def serve(life: int) -> Child:
        ready = tmp_path / f"ready-{life}.json"
        words = [sys.executable, "-m", "teacher_service", "serve", "--backend", "fixture", "--grpc-port", "0"]
        child = Child("teacher", [*words, "--http-port", port, "--ready-file", str(ready)], tmp_path / f"{life}.log")
        until(ready.exists)
        return child

    first = serve(1)
    process = forked.Popen(
        argv(addresses["http"], "killed"), env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: len(losses("killed")) >= 10 or process.poll() is not None)
        first.signal(signal.SIGKILL)
        first.wait(30)
        done = len(losses("killed"))
        with serve(2):
            _, told = process.communicate(timeout=120)
    finally:
        process.kill()
        first.stop(1)
    assert process.returncode == 0, told
    assert done < 150
    assert losses("killed") == losses("whole")
