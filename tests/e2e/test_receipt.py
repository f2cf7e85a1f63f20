"""What a run leaves as proof: how it ended, whatever ended it, and a smoke run that is in nobody's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from student_worker.run_folder.receipt import read_receipt
from tests import forked


def receipt_of(run: Path) -> dict[str, Any]:
    found = read_receipt(run / "receipt.json")
    assert found is not None
    return found


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    import sys

    argv = [sys.executable, "-m", "student_worker", "receipt", "verify", str(folder)]
    return forked.run(argv, timeout=60)


def test_a_receipt_proves_what_ran_and_what_came_out(train: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = train(folder, workers=2, eval_steps=10, save_steps=8)
    assert run.returncode == 0, run.stderr
    receipt = receipt_of(folder)
    identity = json.loads((folder / "run.json").read_text())["identity"]
    assert (receipt["status"], receipt["steps"], receipt["seed"]) == ("done", 20, 42)
    assert (receipt["recipe"], receipt["data"]) == (identity["recipe"], identity["data"])
    assert receipt["world_sizes"][0][0] == 1
    assert max(size for _, size in receipt["world_sizes"]) == 2
    assert receipt["losses"]["last"] < receipt["losses"]["first"]
    assert receipt["losses"]["best_held_out"]["step"] in (10, 20)
    assert receipt["started"] < receipt["ended"]
    assert set(receipt["devices"]) == {"0", "1"}
    assert all(receipt["fingerprints"][name] for name in ("teacher", "student_start", "tokenizer"))
    assert verify(folder).returncode == 0

    weights = folder / "export" / "model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, weights, {"format": "pt"})
    altered = verify(folder)
    assert altered.returncode == 2
    assert "model.safetensors is not what was written; the weights are" in altered.stderr

    text = (folder / "receipt.json").read_text().replace('"steps": 20', '"steps": 21')
    (folder / "receipt.json").write_text(text)
    assert "its checksum does not fit" in verify(folder).stderr


@pytest.mark.long
def test_a_run_that_a_guard_stops_has_a_receipt_that_says_so(train: Any, tmp_path: Path) -> None:
    run = train(tmp_path / "run", max_loss=1e-6)
    assert run.returncode == 3, run.stderr
    receipt = receipt_of(tmp_path / "run")
    assert receipt["status"] == "failed"
    assert "max_loss" in receipt["reason"]
    assert receipt["output"] is None
    assert "failed" in verify(tmp_path / "run").stderr


@pytest.mark.long
def test_a_killed_run_is_still_running_by_its_receipt_and_a_resumed_one_is_done(
    student_argv: Callable[..., list[str]], student_environment: dict[str, str], train: Any, tmp_path: Path
) -> None:
    folder, keys = tmp_path / "run", {"save_steps": 4, "max_steps": 60}
    process = forked.Popen(
        student_argv(folder, **keys), env={**os.environ, **student_environment}, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob("checkpoint-*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert receipt_of(folder)["status"] == "running"
    resumed = train(folder, "--resume", **keys)
    assert resumed.returncode == 0, resumed.stderr
    receipt = receipt_of(folder)
    assert receipt["status"] == "done"
    assert [resume["step"] > 0 for resume in receipt["resumes"]] == [True]
    assert receipt["world_sizes"] == [[1, 1]]
    assert verify(folder).returncode == 0


@pytest.mark.long
def test_a_smoke_run_does_so_many_steps_says_how_long_all_take_and_is_in_nobodys_way(
    train: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for workers in ([], ["--workers", "2"]):
        smoke = train(folder, *workers, smoke_steps=3, eval_steps=10)
        assert smoke.returncode == 0, smoke.stderr
        result = json.loads((folder / "smoke" / "result.json").read_text())
        assert result["steps"] == result["smoke"]["steps_done"] == 3
        assert result["smoke"]["steps_of_the_run"] == 20
        assert result["smoke"]["projected_seconds"] > 0
        assert result["export_dir"] is None
        left = {path.name for path in folder.rglob("*")}
        assert not left & {"export", "run.json"}
        assert not [name for name in left if name.startswith("checkpoint")]
    run = train(folder, eval_steps=10)
    assert run.returncode == 0, run.stderr
    assert receipt_of(folder)["status"] == "done"


@pytest.mark.long
def test_a_smoke_run_longer_than_the_run_is_refused(train: Any, tmp_path: Path) -> None:
    run = train(tmp_path / "run", smoke_steps=500, max_steps=None, warmup_steps=0)
    assert run.returncode == 2
    assert "smoke_steps 500 is more than the run's" in run.stderr


@pytest.mark.long
def test_data_that_has_changed_since_the_checkpoint_is_named(train: Any, corpus: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text((corpus / "notes.txt").read_text())
    first = train(tmp_path / "run", data=text, held_out_samples=None)
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "run" / "receipt.json").read_text()
    text.write_text(text.read_text() + "\n\nand one run more")
    resumed = train(tmp_path / "run", "--resume", data=text, held_out_samples=None)
    assert resumed.returncode == 2, resumed.stderr
    assert "holds a run whose data is" in resumed.stderr.splitlines()[-1]
    assert (tmp_path / "run" / "receipt.json").read_text() == before, "what was proved stays proved"
