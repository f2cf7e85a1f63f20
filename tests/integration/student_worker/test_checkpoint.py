"""Checkpoints are complete or absent, whatever happens to the writer or its disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.errors import CheckpointError
from student_worker import checkpoint
from student_worker.checkpoint import (
    STATE_FILE,
    TENSORS_FILE,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)

WAIT_SECONDS = 60.0


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    tied = torch.randn(8, 4)
    return {"weight": tied, "head": tied, "moment": torch.randn(3), "random": torch.get_rng_state()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    metadata = {"order": {"position": 96}, "recipe": "abc", "rate": 0.1 + 0.2}
    folder = save_checkpoint(tmp_path / "run", 12, tensors, metadata)
    assert latest_checkpoint(tmp_path / "run") == folder
    loaded = load_checkpoint(folder)
    assert (loaded.step, loaded.metadata) == (12, metadata)
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)
    assert names(tmp_path / "run") == {"checkpoint-12"}


def test_the_latest_is_the_one_of_most_steps_not_the_last_in_the_alphabet(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    for step in (9, 100, 20):
        save_checkpoint(tmp_path, step, tensors, {})
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_no_folder_and_an_empty_one_have_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None


def test_only_the_newest_are_kept_and_those_asked_for(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    for step in range(1, 7):
        save_checkpoint(tmp_path, step, tensors, {}, keep_last=2, keep_steps=[3])
    assert names(tmp_path) == {"checkpoint-3", "checkpoint-5", "checkpoint-6"}
    prune_checkpoints(tmp_path, keep_last=0)
    assert names(tmp_path) == {"checkpoint-6"}


def test_a_step_that_is_saved_again_is_replaced(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_checkpoint(tmp_path, 1, tensors, {"attempt": 1})
    save_checkpoint(tmp_path, 1, tensors, {"attempt": 2})
    assert load_checkpoint(tmp_path / "checkpoint-1").metadata == {"attempt": 2}
    assert names(tmp_path) == {"checkpoint-1"}


@pytest.mark.parametrize("useless", [{}, {"weight": torch.empty(0)}])
def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path, useless: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="holds no tensors"):
        save_checkpoint(tmp_path, 1, useless, {})
    assert names(tmp_path) == set()


def test_a_checkpoint_with_a_nan_is_refused_and_the_tensor_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'weight' holds a NaN"):
        save_checkpoint(tmp_path, 1, {"weight": torch.tensor([1.0, float("nan")])}, {})
    assert names(tmp_path) == set()


def test_metadata_that_is_not_json_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    for metadata in ({"path": tmp_path}, {"loss": float("nan")}):
        with pytest.raises(CheckpointError, match="not JSON"):
            save_checkpoint(tmp_path, 1, tensors, metadata)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", [TENSORS_FILE, STATE_FILE])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_to_any_file_is_found_and_the_file_named(
    tmp_path: Path, tensors: dict[str, Tensor], name: str, damage: str
) -> None:
    path = save_checkpoint(tmp_path, 1, tensors, {"position": 16}) / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-3] if damage == "truncated" else data.replace(b"1", b"7", 1))
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(tmp_path / "checkpoint-1")


def test_a_damaged_newest_is_said_and_the_sound_one_named_not_taken(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    sound = save_checkpoint(tmp_path, 1, tensors, {})
    newest = save_checkpoint(tmp_path, 2, tensors, {}) / TENSORS_FILE
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{newest} has .* remove .*checkpoint-.* and resume from {sound}"):
        latest_checkpoint(tmp_path)


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = save_checkpoint(tmp_path, 1, tensors, {}) / STATE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(CheckpointError, match=r"version 2; this release reads .* version 1"):
        load_checkpoint(tmp_path / "checkpoint-1")


def test_a_folder_with_another_name_is_no_checkpoint(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_checkpoint(tmp_path, 1, tensors, {})
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / ".checkpoint-9.elsewhere.1.aside").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_what_killed_writers_left_is_removed_and_a_living_one_elsewhere_is_not(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    host = os.uname().nodename
    abandoned = [f".checkpoint-1.{host}.{int(dead.stdout)}.aside", ".checkpoint-2.another-host.1.aside"]
    writing = ".checkpoint-3.another-host.1.aside"
    for name in (*abandoned, writing):
        (tmp_path / name).mkdir()
    long_ago = time.time() - 2 * checkpoint.STALE_ASIDE_SECONDS
    os.utime(tmp_path / abandoned[1], (long_ago, long_ago))
    save_checkpoint(tmp_path, 4, tensors, {})
    assert names(tmp_path) == {"checkpoint-4", writing}


WRITER = """
import resource, sys, torch
from pathlib import Path
from stillhouse.errors import CheckpointError
from student_worker.checkpoint import save_checkpoint
output, limit, megabytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    save_checkpoint(output, 2, {"weight": torch.zeros(megabytes << 18)}, {})
except CheckpointError as error:
    sys.exit(f"refused: {error}")
"""


def write_in_another_process(output: Path, *, limit_bytes: int = 0, megabytes: int = 8) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output), str(limit_bytes), str(megabytes)], stderr=subprocess.PIPE, text=True
    )


def assert_refused_and_intact(output: Path, writer: subprocess.Popen[str]) -> None:
    _, errors = writer.communicate(timeout=WAIT_SECONDS)
    assert writer.returncode == 1
    assert "refused: " in errors
    assert "the previous checkpoints are as they were" in errors
    assert names(output) == {"checkpoint-1"}
    assert load_checkpoint(output / "checkpoint-1").step == 1


def test_a_write_that_the_system_stops_leaves_the_previous_one_and_nothing_else(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    save_checkpoint(tmp_path, 1, tensors, {})
    assert_refused_and_intact(tmp_path, write_in_another_process(tmp_path, limit_bytes=1 << 20))


def test_a_full_disk_leaves_the_previous_one_and_nothing_else(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        save_checkpoint(disk, 1, tensors, {})
        with pytest.raises(CheckpointError, match=r"No space left on device.*Free space there"):
            save_checkpoint(disk, 2, {"weight": torch.zeros(2 << 20)}, {})
        assert names(disk) == {"checkpoint-1"}
        assert load_checkpoint(disk / "checkpoint-1").step == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_output_folder_that_is_a_file_is_an_error_that_says_so(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="File exists"):
        save_checkpoint(tmp_path / "run", 1, tensors, {})


def test_a_writer_killed_in_the_middle_leaves_the_previous_one_as_the_latest(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    save_checkpoint(tmp_path, 1, tensors, {})
    writer = write_in_another_process(tmp_path, megabytes=512)
    deadline = time.monotonic() + WAIT_SECONDS
    while not any(path.stat().st_size for path in tmp_path.glob(f".checkpoint-2.*/{TENSORS_FILE}")):
        assert writer.poll() is None
        assert time.monotonic() < deadline
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=WAIT_SECONDS)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert list(tmp_path.glob(".checkpoint-2.*"))
    save_checkpoint(tmp_path, 2, tensors, {})
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2"}
