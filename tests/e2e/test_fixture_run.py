"""A whole run with no model on either side: the fixture student learns from the fixture teacher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import RUN_SECONDS, serving


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    # Mostly one token, so that a student with one row of logits has something to learn.
    ids = np.random.default_rng(0).choice(256, 4000, p=[0.745, *[0.001] * 255])
    ids.astype("<u4").tofile(folder / "a.bin")
    return folder


def train(address: str, data: Path, output: Path) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "student_worker", "train", "--teacher", address, "--student", "fixture"]
    argv += ["--data", str(data), "--block-size", "32", "--held-out-samples", "4", "--max-steps", "10"]
    argv += ["--global-batch-size", "4", "--learning-rate", "0.5", "--output-dir", str(output), "--http-port", "0"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(output.parent / "cache")}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)


def test_the_fixture_student_learns_through_the_service(shards: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--backend", "fixture") as addresses:
        done = train(addresses["grpc"], shards, tmp_path / "run")
        assert done.returncode == 0, done.stderr
        text = tmp_path / "text.txt"
        text.write_text("words that need a tokenizer")
        refused = train(addresses["grpc"], text, tmp_path / "other")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "step"]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert refused.returncode == 2
    assert "tokenizer" in refused.stderr
