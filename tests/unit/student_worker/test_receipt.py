"""The receipt: one story, whoever writes it, and no other run's."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file

from stillhouse.errors import CheckpointError
from stillhouse.version import source_commit
from student_worker.callbacks import RunView, StepRecord
from student_worker.run_folder.output_proof import differences, prove
from student_worker.run_folder.receipt import RECEIPT_FILE, Receipt, read_receipt, verify
from student_worker.state import WorkerState

FACTS = {"recipe": "r", "data": "d", "teacher": "t", "seed": 1}


@dataclass
class Counted:
    """What the receipt looks at of a state."""

    step: int = 0
    num_tokens: int = 0


def receipt(folder: Path, state: Counted, **facts: Any) -> Receipt:
    return Receipt(folder, {**FACTS, **facts}, cast("WorkerState", state), "loss")


def advance(kept: Receipt, state: Counted, step: int, world_size: int, *, is_first: bool) -> None:
    state.step, state.num_tokens = step, 10 * step
    record = StepRecord(step, 9.0 - step, 0, 0, 0, 0, 10, 0, 0, 0, world_size)
    kept.on_step_end(RunView(Path(), "run", step, 9, is_first), record)


def test_whoever_becomes_the_writer_goes_on_with_the_story(tmp_path: Path) -> None:
    one, two = Counted(), Counted()
    first, second = receipt(tmp_path, one), receipt(tmp_path, two)
    first.begin()
    for step, size in ((1, 1), (2, 2), (3, 2)):
        advance(first, one, step, size, is_first=True)
        if step > 1:
            advance(second, two, step, size, is_first=False)
    advance(second, two, 4, 1, is_first=True)  # the first was killed
    second.close("done")
    content = read_receipt(tmp_path / RECEIPT_FILE)
    assert content is not None
    assert content["world_sizes"] == [[1, 1], [2, 2], [4, 1]]
    assert (content["losses"]["first"], content["losses"]["last"]) == (8.0, 5.0)
    assert (content["status"], content["steps"], content["tokens"]) == ("done", 4, 40)


def test_steps_that_are_done_again_are_told_once(tmp_path: Path) -> None:
    state = Counted()
    kept = receipt(tmp_path, state)
    kept.begin()
    for step, size in ((1, 1), (2, 2), (3, 3)):
        advance(kept, state, step, size, is_first=True)
    resumed, state = receipt(tmp_path, again := Counted(1, 10)), again
    resumed.begin()
    advance(resumed, state, 2, 1, is_first=True)
    content = read_receipt(tmp_path / RECEIPT_FILE)
    assert content is not None
    assert content["world_sizes"] == [[1, 1]]
    assert [resume["step"] for resume in content["resumes"]] == [1]
    assert content["status"] == "running"


def test_another_runs_receipt_is_not_gone_on_with(tmp_path: Path) -> None:
    state = Counted()
    earlier = receipt(tmp_path, state, data="other")
    earlier.begin()
    advance(earlier, state, 1, 3, is_first=True)
    receipt(tmp_path, Counted()).begin()
    content = read_receipt(tmp_path / RECEIPT_FILE)
    assert content is not None
    assert content["world_sizes"] == []


def test_a_proof_tells_every_change_of_a_folder(tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    save_file({"w": torch.ones(3)}, export / "model.safetensors")
    (export / "config.json").write_text("{}")
    proof = json.loads(json.dumps(prove(export)))
    assert differences(export, proof) == []
    (export / "config.json").unlink()
    (export / "more.txt").write_text("")
    save_file({"w": torch.zeros(3)}, export / "model.safetensors")
    words = "; ".join(differences(export, proof))
    for said in ("config.json is missing", "more.txt was not there", "model.safetensors is not", "the weights are"):
        assert said in words
    (export / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        differences(export, proof)


def test_only_a_whole_receipt_of_a_finished_run_is_verified(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no receipt\.json"):
        verify(tmp_path)
    receipt(tmp_path, Counted()).close("failed", "the loss is nan")
    with pytest.raises(CheckpointError, match=r"says failed \(the loss is nan\)"):
        verify(tmp_path)
    path = tmp_path / RECEIPT_FILE
    path.write_text(path.read_text().replace("failed", "done"))
    with pytest.raises(CheckpointError, match="checksum"):
        verify(tmp_path)


def test_the_commit_is_that_of_the_checkout() -> None:
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        pytest.skip("this is no checkout")
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert (source_commit() or "").removesuffix("-dirty") == head.stdout.strip()
