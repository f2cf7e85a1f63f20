"""Callbacks, trackers and samples' log in runs of real processes, alone and together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

MODULE = '''
from student_worker.callbacks import Callback, Evaluation, RunView, StepRecord, Stop


class StopsAtSix(Callback):
    """Asks to stop in the worker that does not write, if there are two."""

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        if step.step == 6 and run.is_first == (step.world_size == 1):
            raise Stop("six are enough")


class Breaks(Callback):
    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        if step.step == 3:
            raise RuntimeError("not like this")


class Tells(Callback):
    def on_save(self, run: RunView, checkpoint: str) -> None:
        with (run.output_dir / "told.txt").open("a") as file:
            file.write(f"{checkpoint}\\n")
'''


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluated(folder: Path) -> list[int]:
    return [line["step"] for line in lines(folder / "metrics.jsonl") if line["event"] == "evaluation"]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "watching_this.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_callback_stops_every_worker_after_its_step_and_a_resume_knows(
    train: Any, tmp_path: Path, workers: int
) -> None:
    folder = tmp_path / "run"
    keys = {"callbacks": "watching_this:StopsAtSix", "eval_steps": 5, "save_steps": 8}
    run = train(folder, "--sample-log", workers=workers, **keys)
    assert run.returncode == 0, run.stderr
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("stopped", 6)
    assert (folder / "checkpoint-6").is_dir()
    assert (folder / "export" / "model.safetensors").exists()
    assert [line["step"] for line in lines(folder / "samples.jsonl")] == list(range(1, 7))
    again = train(folder, "--sample-log", "--resume", workers=workers, **keys)
    assert again.returncode == 0, again.stderr
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("stopped", 6)
    assert [line["step"] for line in lines(folder / "metrics.jsonl") if line["event"] == "step"] == list(range(1, 7))


def test_a_callback_that_breaks_stops_the_run_with_its_last_step_kept(train: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = train(folder, callbacks="watching_this:Breaks", eval_steps=10, save_steps=8)
    assert run.returncode == 3, run.stderr
    assert "callback Breaks failed in on_step_end after step 3: RuntimeError: not like this" in run.stderr
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"], result["export_dir"]) == ("failed", 3, None)
    assert "Breaks" in result["reason"]
    assert (folder / "checkpoint-3").is_dir()


def test_a_callback_that_is_not_there_is_refused_before_anything_is_written(train: Any, tmp_path: Path) -> None:
    run = train(tmp_path / "run", callbacks="watching_this:Absent")
    assert run.returncode == 2
    assert "watching_this:Absent" in run.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_early_stopping_and_the_trackers_go_through_two_lives_of_a_run(train: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator

    folder = tmp_path / "run"
    keys = {
        "report_to": ["tensorboard", "wandb"],
        "callbacks": ["watching_this:Tells"],
        "eval_steps": 2,
        "save_steps": 8,
        "early_stopping_patience": 3,
        "early_stopping_threshold": 50,
    }
    run = train(folder, **keys)
    assert run.returncode == 0, run.stderr
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("stopped", 6)
    assert "early stopping" in result["reason"]
    assert evaluated(folder) == [0, 2, 4, 6]
    assert json.loads((folder / "best.json").read_text())["step"] == result["best"]["step"]
    assert str(folder / "checkpoint-6") in (folder / "told.txt").read_text()
    (folder / "result.json").unlink()
    again = train(folder, "--resume", **keys)
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "result.json").read_text())["status"] == "stopped", "the checkpoint knows it too"
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 7))
    assert [event.step for event in events.Scalars("eval/loss")] == [0, 2, 4, 6]
    assert list((folder / "wandb").glob("offline-run-*")), run.stderr


@pytest.mark.long
@pytest.mark.parametrize("point", ["after-vote@4/0=kill", "mid-evaluation@5/0=kill", "after-vote@9/0=freeze:9"])
def test_a_first_worker_that_is_lost_before_it_writes_leaves_no_line_missing_and_none_twice(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Killed between the vote and the line, killed in an evaluation, and frozen until the others are further on."""
    monkeypatch.setenv("STILLHOUSE_FAILPOINTS", point)
    monkeypatch.setenv("STILLHOUSE_FAILPOINTS_DIR", str(tmp_path))
    folder = tmp_path / "run"
    run = train(folder, "--sample-log", workers=2, eval_steps=5, save_steps=8)
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.glob("*.struck")), "it was to be struck"
    written = lines(folder / "metrics.jsonl")
    assert [line["step"] for line in written if line["event"] == "step"] == list(range(1, 21))
    assert evaluated(folder) == [0, 5, 10, 15, 20]
    assert [line["step"] for line in lines(folder / "samples.jsonl")] == list(range(1, 21))


@pytest.mark.long
@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_that_evaluates_for_long_costs_nobody_a_step(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Of two, the other waits; of three, the two go on, and the third heals from them."""
    monkeypatch.setenv("STILLHOUSE_FAILPOINTS", "mid-evaluation@5/1=freeze:9")
    monkeypatch.setenv("STILLHOUSE_FAILPOINTS_DIR", str(tmp_path))
    folder = tmp_path / "run"
    run = train(folder, workers=workers, eval_steps=5, save_steps=8, max_steps=20 if workers == 2 else 400)
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.glob("*.struck")), "it was to take long"
    assert "step_not_committed" not in run.stderr
    steps = [line for line in lines(folder / "metrics.jsonl") if line["event"] == "step"]
    assert [line["world_size"] for line in steps][-1] == workers, "it is among them at the end"
