"""Whole runs of students, as processes: alone and together, interrupted and resumed, and refused."""

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
import torch
from safetensors.torch import load_file

from tests import forked

STEPS = 20


def records(run: Path, event: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = (load_file(run / "export" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="session")
def one_worker(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    folder: Path = tmp_path_factory.mktemp("one") / "run"
    run = train(folder, "--export-initial", eval_steps=10, save_steps=8)
    assert run.returncode == 0, run.stderr
    return folder


def test_a_run_learns_and_leaves_what_others_can_open(one_worker: Path, tiny_llama_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    steps, evaluations = records(one_worker, "step"), records(one_worker, "evaluation")
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert [record["step"] for record in evaluations] == [0, 10, STEPS]
    assert evaluations[-1]["kl"] < 0.9 * evaluations[0]["kl"]
    assert evaluations[0]["perplexity_teacher"] == evaluations[-1]["perplexity_teacher"] > 1
    result = json.loads((one_worker / "result.json").read_text())
    assert (result["status"], result["steps"], result["dropped_layers"]) == ("done", STEPS, [0])
    assert result["teacher_parameters"] > result["student_parameters"]
    for folder in ("initial", "export"):
        model: Any = AutoModelForCausalLM.from_pretrained(one_worker / folder)
        tokenizer = AutoTokenizer.from_pretrained(one_worker / folder)
        ids = tokenizer("the still parts", return_tensors="pt")["input_ids"]
        assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] == ids.shape[1] + 4
    card = (one_worker / "export" / "README.md").read_text()
    assert str(tiny_llama_folder) in card
    assert "notes.txt" in card


def test_two_workers_end_with_the_bits_of_one(train: Any, one_worker: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", workers=2, eval_steps=10, save_steps=8)
    assert run.returncode == 0, run.stderr
    alone, together = records(one_worker, "step"), records(tmp_path / "run", "step")
    assert [record["loss"] for record in together] == [record["loss"] for record in alone]
    assert max(record["world_size"] for record in together) == 2
    assert_same_bits(tmp_path / "run", one_worker)


def test_a_run_that_was_interrupted_resumes_to_the_same_bits(
    student_argv: Callable[..., list[str]],
    student_environment: dict[str, str],
    train: Any,
    one_worker: Path,
    tmp_path: Path,
) -> None:
    keys = {"eval_steps": 10, "save_steps": 8}
    folder = tmp_path / "run"
    process = forked.Popen(
        student_argv(folder, **keys), env={**os.environ, **student_environment}, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "metrics.jsonl").exists() or not records(folder, "step"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=60)
    finally:
        process.kill()
    done = records(folder, "step")[-1]["step"]
    assert process.returncode == 143, output
    assert done < STEPS, "it was to be interrupted before its end"
    assert (folder / f"checkpoint-{done}").is_dir()
    assert not (folder / "export").exists()

    refused = train(folder, **keys)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    resumed = train(folder, "--resume", **keys)
    assert resumed.returncode == 0, resumed.stderr
    assert [record["step"] for record in records(folder, "step")] == list(range(1, STEPS + 1))
    assert_same_bits(folder, one_worker)


def test_a_checkpoint_of_another_recipe_is_refused(train: Any, one_worker: Path) -> None:
    run = train(one_worker, "--resume", eval_steps=10, save_steps=8, learning_rate=2e-3)
    assert run.returncode == 2
    assert "recipe" in run.stderr


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"keep_layers": "0-7"}, "keep_layers"),
        ({"teacher": "127.0.0.1:1", "data": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"teacher": "127.0.0.1:1", "teacher_wait_seconds": 0, "request_timeout_seconds": 1}, "127.0.0.1:1"),
        ({"data": "/nowhere/at/all.txt", "text_separator": None}, "/nowhere/at/all.txt"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line_and_exit_code_2(
    train: Any, tmp_path: Path, keys: dict[str, Any], named: str
) -> None:
    run = train(tmp_path / "run", **keys)
    assert run.returncode == 2, run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert named in last
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "run").exists()
