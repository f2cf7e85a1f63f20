"""The demonstration from start to end, on a tiny model; with the real weights it is `make demo`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

LIMIT_SECONDS = 180.0


def demo_argv(teacher: Path, folder: Path, steps: int) -> list[str]:
    argv = [sys.executable, "-m", "stillhouse", "demo", "--teacher", str(teacher), "--keep-layers", "0"]
    return [*argv, "--output-dir", str(folder), "--steps", str(steps), "--second-pass-steps", "5"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_it_reports_what_it_did_and_may_run_again(
    tiny_llama_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "demo"
    for _ in range(2):
        done = subprocess.run(
            demo_argv(tiny_llama_folder, folder, 10),
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["workers"] == 2
    assert report["steps"] == 10
    assert report["cache_hit_ratio_second_pass"] == 1.0
    assert report["teacher_forward_tokens_second_pass"] == 0
    assert report["teacher_forward_tokens"] > 0
    assert report["kl_after"] < report["kl_before"]
    assert (folder / "first" / "export" / "model.safetensors").exists()
    assert "<svg" in (folder / "report.html").read_text()


def test_ctrl_c_in_the_middle_leaves_no_process_behind(
    tiny_llama_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "demo"
    # More steps than could be done before the signal.
    demo = subprocess.Popen(
        demo_argv(tiny_llama_folder, folder, 100_000),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert demo.stderr is not None
    metrics = folder / "first" / "metrics.jsonl"
    deadline = time.monotonic() + LIMIT_SECONDS
    while not metrics.exists() and demo.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert metrics.exists()
    family = psutil.Process(demo.pid).children(recursive=True)
    assert len(family) >= 4  # teacher, Valkey, launcher, workers
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 143, errors
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_a_folder_that_is_not_the_demos_own_is_left_alone(tmp_path: Path, environment: dict[str, str]) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("ten years")
    done = subprocess.run(
        demo_argv(tmp_path, tmp_path, 10), env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --output-dir")
    assert precious.read_text() == "ten years"
