"""Whole runs of students that are cut by importance, adapted, or compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

KEYS = {
    "keep_layers": None,
    "keep_most_important": 1,
    "lora_r": 4,
    "lora_dropout": 0.1,
    "max_steps": 6,
    "save_steps": 3,
}


@pytest.fixture(scope="module")
def alone(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one worker."""
    folder: Path = tmp_path_factory.mktemp("alone") / "run"
    run = train(folder, **KEYS)
    assert run.returncode == 0, run.stderr
    return folder


def test_adapters_alone_are_checkpointed_and_the_export_is_whole(alone: Path) -> None:
    from transformers import AutoModelForCausalLM

    (weights,) = (alone / "checkpoint-6").glob("*.safetensors")
    with safe_open(weights, "pt") as file:
        names = list(file.keys())
    assert [name for name in names if "lora_" not in name] == ["optimizer.step"]
    result = json.loads((alone / "result.json").read_text())
    model: Any = AutoModelForCausalLM.from_pretrained(alone / "export")
    assert model.config.num_hidden_layers == 1
    assert len(result["dropped_layers"]) == 1
    evaluations = result["evaluations"]
    assert evaluations[-1]["kl"] < evaluations[0]["kl"]


@pytest.mark.long
def test_two_workers_choose_the_same_layers_and_end_with_the_same_bits(train: Any, alone: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", workers=2, **KEYS)
    assert run.returncode == 0, run.stderr
    ours, theirs = (load_file(folder / "export" / "model.safetensors") for folder in (tmp_path / "run", alone))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.long
def test_a_compiled_run_learns_what_an_eager_one_does(train: Any, tmp_path: Path) -> None:
    losses = []
    for name, compiled in (("eager", "--no-torch-compile"), ("compiled", "--torch-compile")):
        run = train(tmp_path / name, compiled, max_steps=4)
        assert run.returncode == 0, run.stderr
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if line["event"] == "step"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_more_layers_than_there_are_is_refused_with_the_depth(train: Any, tmp_path: Path) -> None:
    run = train(tmp_path / "run", **{**KEYS, "keep_most_important": 3})
    assert run.returncode == 2
    assert "keep_most_important 3 drops none of the model's 2 layers" in run.stderr
