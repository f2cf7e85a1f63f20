"""Runs on a real GPU as a user starts them: alone and several on one, killed and resumed, compiled and in bfloat16."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import Train, serving

WAIT_SECONDS = 120.0
KEYS: dict[str, Any] = {"max_steps": 40, "save_steps": 10, "micro_shards": 4}
EXACT = "--full-determinism"


@pytest.fixture(scope="session")
def teacher(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    model = ("--backend", "transformers", "--model", str(tiny_llama_folder), "--device", "cuda", "--dtype", "float32")
    with serving(tmp_path_factory.mktemp("teacher"), *model, "--mode", "deterministic") as addresses:
        yield addresses


def steps(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    records = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [record for record in records if record["event"] == "step"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def receipt(run: Path) -> Any:
    return json.loads((run / "receipt.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = train(run, EXACT, device="cuda", **KEYS)
    assert done.returncode == 0, done.stderr[-3000:]
    return run


def test_a_run_on_the_gpu_learns_and_its_receipt_says_where(undisturbed: Path) -> None:
    losses = [record["loss"] for record in steps(undisturbed)]
    assert sum(losses[-5:]) < sum(losses[:5])
    told = json.dumps(receipt(undisturbed))
    assert torch.cuda.get_device_name() in told
    assert "triton" in told


@pytest.mark.parametrize(
    "flag",
    ["--precision=bfloat16", "--torch-compile", "--gradient-checkpointing", "--encoding=top_k:16",
     "--encoding=sampled:20", "--encoding=dense:f32", "--reduction=fast"],
)  # fmt: skip
def test_ways_to_train(train: Train, tmp_path: Path, flag: str) -> None:
    done = train(tmp_path / "run", flag, max_steps=20, device="cuda")
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [record["loss"] for record in steps(tmp_path / "run")]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_run_that_is_killed_and_resumed_ends_with_the_bits_of_the_undisturbed_one(
    undisturbed: Path,
    student_argv: Callable[..., list[str]],
    student_environment: dict[str, str],
    train: Train,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*student_argv(run, device="cuda", **KEYS), EXACT],
            env={**os.environ, **student_environment},
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + WAIT_SECONDS
        while not list(run.glob("checkpoint-*")):
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = train(run, EXACT, "--resume", device="cuda", **KEYS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_bits(run, undisturbed)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_share_the_gpu_end_with_the_bits_of_one(
    undisturbed: Path, train: Train, tmp_path: Path, workers: int
) -> None:
    """NCCL refuses two ranks on one GPU: they exchange by gloo, through the host."""
    run = tmp_path / "run"
    done = train(run, EXACT, "--workers", str(workers), **KEYS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(record["world_size"] for record in steps(run)) == workers
    assert_same_bits(run, undisturbed)


def test_a_worker_at_a_lighthouse_by_itself_uses_nccl(
    undisturbed: Path,
    student_argv: Callable[..., list[str]],
    student_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    from student_worker.elastic.lighthouse import Lighthouse

    run = tmp_path / "run"
    with Lighthouse() as lighthouse:
        done = subprocess.run(
            [*student_argv(run, lighthouse=lighthouse.address, device="cuda", **KEYS), EXACT],
            env={**os.environ, **student_environment, "STUDENT_RUN_TOKEN": "secret", "NCCL_DEBUG": "INFO"},
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NCCL" in done.stdout + done.stderr
    assert_same_bits(run, undisturbed)
