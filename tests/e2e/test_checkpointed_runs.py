"""Runs and their checkpoints: the best is exported, a full disk stops, damage is passed over, the bits stay."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from student_worker.checkpoints.folder import Folder
from student_worker.elastic.lighthouse import Lighthouse

STEPS = 12
RUN_SECONDS = 120.0


def keys(**more: Any) -> dict[str, Any]:
    return {"max_steps": STEPS, "eval_steps": 3, "save_steps": 4, "save_total_limit": 2, **more}


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = exported(one), exported(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def evaluations(run: Path) -> dict[int, float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if record["event"] == "evaluation"}


@pytest.fixture(scope="module")
def undisturbed(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("undisturbed") / "run"
    run = train(folder, **keys())
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture
def struck_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Arms a fail-point for the workers that are started within."""

    @contextmanager
    def struck(point: str) -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setenv("STILLHOUSE_FAILPOINTS", point)
            patched.setenv("STILLHOUSE_FAILPOINTS_DIR", str(tmp_path))
            yield
        assert list(tmp_path.glob("*.struck"))

    return struck


def test_the_best_weights_are_kept_beside_the_newest_and_exported_on_demand(train: Any, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    # A rate this high makes the student worse and worse after a good start.
    run = train(
        folder,
        "--load-best-model-at-end",
        checkpoint_dir=f"file://{elsewhere}",
        **keys(learning_rate=0.5, warmup_steps=6, lr_scheduler_type="constant_with_warmup", eval_steps=1),
    )
    assert run.returncode == 0, run.stderr
    losses = {step: loss for step, loss in evaluations(folder).items() if step > 0}
    step = min(losses, key=lambda step: losses[step])
    assert step < 8, "this test needs a best that is not among the newest"
    assert {path.name for path in elsewhere.iterdir()} == {
        f"checkpoint-{step}", "checkpoint-8", f"checkpoint-{STEPS}", "best.json"
    }  # fmt: skip
    best = {"step": step, "metric": "loss", "value": losses[step], "checkpoint": f"checkpoint-{step}"}
    assert json.loads((elsewhere / "best.json").read_text()) == best
    result = json.loads((folder / "result.json").read_text())
    assert (result["best"], result["exported_step"], result["steps"]) == (best, step, STEPS)
    kept = load_file(elsewhere / f"checkpoint-{step}" / "tensors.safetensors")
    for name, tensor in exported(folder).items():
        assert torch.equal(tensor, kept[f"model.{name}"]), name
    refused = train(tmp_path / "another", checkpoint_dir=elsewhere, **keys())
    assert refused.returncode == 2
    assert "checkpoint_dir" in refused.stderr.splitlines()[-1]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_the_run_and_what_is_resumed_has_the_same_bits(
    train: Any, undisturbed: Path, tmp_path: Path, workers: int
) -> None:
    disk, size = tmp_path / "disk", size_of(undisturbed / f"checkpoint-{STEPS}")
    with small_disk(disk, int(1.5 * size)):
        run = train(tmp_path / "run", checkpoint_dir=disk, workers=workers, **keys(eval_steps=0))
        assert run.returncode == 2, run.stderr
        assert "No space left on device" in run.stderr
        assert "Free space there or name another checkpoint_dir, and resume" in run.stderr
        assert {path.name for path in disk.iterdir()} == {"checkpoint-4"}
        subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(disk)], check=True)
        resumed = train(tmp_path / "run", "--resume", checkpoint_dir=disk, workers=workers, **keys(eval_steps=0))
        assert resumed.returncode == 0, resumed.stderr
        assert_same_bits(tmp_path / "run", undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_the_bits_are_the_same(
    train: Any, struck_at: Any, undisturbed: Path, tmp_path: Path, name: str
) -> None:
    with struck_at("mid-step@11=kill"):
        struck = train(tmp_path / "run", **keys(eval_steps=0, save_steps=2))
    assert struck.returncode == -9, struck.stderr
    # The newest may not have been complete at the kill; those before it were.
    newest = max(Folder(tmp_path / "run").steps())
    assert newest >= 8
    path = tmp_path / "run" / f"checkpoint-{newest}" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    resumed = train(tmp_path / "run", "--resume", **keys(eval_steps=0, save_steps=2))
    assert resumed.returncode == 0, resumed.stderr
    assert "checkpoint_damaged" in resumed.stderr
    assert f"checkpoint-{newest}" in resumed.stderr
    assert_same_bits(tmp_path / "run", undisturbed)


@pytest.mark.long
def test_a_run_killed_while_it_writes_goes_on_with_the_same_bits(
    train: Any, struck_at: Any, undisturbed: Path, tmp_path: Path
) -> None:
    with struck_at("mid-checkpoint@8=kill"):
        struck = train(tmp_path / "run", **keys(eval_steps=0))
    assert struck.returncode == -9, struck.stderr
    assert not (tmp_path / "run" / "checkpoint-8").exists()
    resumed = train(tmp_path / "run", "--resume", **keys(eval_steps=0))
    assert resumed.returncode == 0, resumed.stderr
    assert {path.name for path in (tmp_path / "run").glob("*checkpoint-*")} == {"checkpoint-8", "checkpoint-12"}
    assert_same_bits(tmp_path / "run", undisturbed)


@pytest.mark.long
def test_where_one_host_cannot_write_its_worker_leaves_and_another_takes_over(
    student_argv: Any, student_environment: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    """The two have folders of their own, as on two hosts; the first may make no file of more than 64 KiB."""
    workers = []
    with Lighthouse() as lighthouse:
        for index, limit in ((0, "64"), (1, "unlimited")):
            argv = student_argv(
                tmp_path / "run",
                checkpoint_dir=tmp_path / f"host-{index}",
                lighthouse=lighthouse.address,
                worker_index=index,
                local_workers=2,
                **keys(eval_steps=0),
            )
            environment = {**os.environ, **student_environment, "STUDENT_RUN_TOKEN": "of-this-run"}
            command = ["bash", "-c", 'ulimit -f "$0"; exec "$@"', limit, *argv]
            workers.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            )
        try:
            said = [worker.communicate(timeout=RUN_SECONDS)[1] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
    assert [worker.returncode for worker in workers] == [2, 0], said
    assert "File too large" in said[0].splitlines()[-1]
    assert "Free space there or name another checkpoint_dir, and resume" in said[0]
    assert not list((tmp_path / "host-0").iterdir())
    assert {path.name for path in (tmp_path / "host-1").iterdir()} == {"checkpoint-8", f"checkpoint-{STEPS}"}
    assert_same_bits(tmp_path / "run", undisturbed)
