"""A teacher that stays away, and one that will not have us: how a run ends, and what is kept of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import forked
from tests.e2e.conftest import serving


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    np.random.default_rng(0).integers(0, 256, 4000).astype("<u4").tofile(folder / "a.bin")
    return folder


def argv(address: str, data: Path, output: Path, *flags: str) -> list[str]:
    words = [sys.executable, "-m", "student_worker", "train", "--teacher", address, "--student", "fixture"]
    words += ["--data", str(data), "--block-size", "32", "--max-steps", "1000000", "--global-batch-size", "4"]
    words += ["--teacher-wait-seconds", "1", "--request-timeout-seconds", "5", "--output-dir", str(output)]
    return [*words, "--http-port", "0", *flags]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **more}


def steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [record["step"] for record in map(json.loads, lines) if record["event"] == "step"]


@pytest.mark.long
def test_a_run_whose_teacher_stays_away_is_to_be_started_again_and_keeps_its_last_step(
    shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with serving(tmp_path, "--backend", "fixture") as addresses:
        words = argv(addresses["grpc"], shards, run)
        process = forked.Popen(words, env=environment(tmp_path), stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 60
            while len(steps(run)) < 3:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        except BaseException:
            process.kill()
            raise
    _, output = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert '"waiting_for_teacher"' in output
    assert "teacher_wait_seconds, 1 s" in output
    done = steps(run)[-1]
    assert (run / f"checkpoint-{done}").is_dir()

    # Started again while it is still away: the same, since the run has met it before.
    again = forked.run([*words, "--resume"], env=environment(tmp_path), timeout=60)
    assert again.returncode == 1, again.stderr
    assert steps(run)[-1] == done


@pytest.mark.long
def test_a_wrong_token_is_refused_at_once(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("trainer right-token-0123456789\n")
    with serving(tmp_path, "--backend", "fixture", "--tokens-file", str(tmp_path / "tokens")) as addresses:
        words = argv(addresses["grpc"], shards, tmp_path / "run", "--teacher-wait-seconds", "300")
        variables = environment(tmp_path, STUDENT_TEACHER_TOKEN="wrong-token-0123456789")
        refused = forked.run(words, env=variables, timeout=60)
    assert refused.returncode == 2, refused.stderr
    assert "waiting_for_teacher" not in refused.stderr
    assert "wrong-token" not in refused.stderr
    assert not (tmp_path / "run").exists()
