"""A folder's checkpoints are complete or absent, whatever happens to the writer or its disk."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from stillhouse.errors import CheckpointError, ConfigurationError
from student_worker.checkpoints import CheckpointStore, folder
from student_worker.checkpoints.layout import TENSORS_FILE
from tests.integration.student_worker.checkpoint_places import assert_same, names, some_tensors

WAIT_SECONDS = 60.0


def save(output: Path, step: int, megabytes: int = 0) -> None:
    tensors = {"weight": torch.full((megabytes << 18,), float(step))} if megabytes else some_tensors(step)
    CheckpointStore(output).save(step, tensors, {}, background=False)


def assert_intact(output: Path) -> None:
    loaded = CheckpointStore(output).load()
    assert loaded is not None
    assert loaded.step == 1
    assert_same(loaded.tensors, some_tensors(1))


@contextmanager
def mounted(disk: Path, options: str) -> Iterator[None]:
    """A small file system of its own; skips, and says so, where that is not allowed."""
    disk.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_previous_one_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=4m"):
        save(disk, 1)
        with pytest.raises(CheckpointError, match=r"checkpoint-2 was not written.*No space left.*Free space there"):
            save(disk, 2, megabytes=8)
        assert names(disk) == {"checkpoint-1"}
        assert_intact(disk)
        save(disk, 2, megabytes=1)
        assert names(disk) == {"checkpoint-1", "checkpoint-2"}


def test_a_folder_that_became_read_only_is_said_and_the_previous_one_is_readable(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=4m"):
        save(disk, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(CheckpointError, match=r"checkpoint-2 was not written.*Read-only file system"):
            save(disk, 2)
        with pytest.raises(ConfigurationError, match=r"checkpoint_dir .* cannot be written: Read-only file system"):
            CheckpointStore(disk).place.check_writable()
        assert_intact(disk)


def test_a_file_in_the_folders_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="checkpoint-1 was not written"):
        save(tmp_path / "run", 1)
    with pytest.raises(ConfigurationError, match=r"checkpoint_dir .* cannot be written"):
        CheckpointStore(tmp_path / "run").place.check_writable()


@pytest.mark.parametrize(("number", "is_said"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_drive_that_cannot_sync_folders_will_do_but_a_failing_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_said: bool
) -> None:
    real = os.fsync

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(CheckpointError, match="Input/output error") if is_said else nullcontext():
        save(tmp_path, 1)
    assert names(tmp_path) == (set() if is_said else {"checkpoint-1"})


WRITER = """
import resource, sys, torch
from pathlib import Path
from stillhouse.errors import CheckpointError
from student_worker.checkpoints import CheckpointStore
output, limit, megabytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
store = CheckpointStore(output)
try:
    store.save(2, {"weight": torch.zeros(megabytes << 18)}, {})
    store.finish()
except CheckpointError as error:
    sys.exit(f"refused: {error}")
"""


def write_in_another_process(output: Path, *, limit_bytes: int = 0, megabytes: int = 8) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output), str(limit_bytes), str(megabytes)], stderr=subprocess.PIPE, text=True
    )


def test_a_write_that_the_system_stops_leaves_the_previous_one_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 1)
    writer = write_in_another_process(tmp_path, limit_bytes=1 << 20)
    _, errors = writer.communicate(timeout=WAIT_SECONDS)
    assert writer.returncode == 1
    assert "refused: " in errors
    assert "the previous checkpoints are as they were" in errors
    assert names(tmp_path) == {"checkpoint-1"}
    assert_intact(tmp_path)


def test_a_writer_killed_in_the_background_leaves_the_previous_one_as_the_latest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    writer = write_in_another_process(tmp_path, megabytes=512)
    deadline = time.monotonic() + WAIT_SECONDS
    while not any(path.stat().st_size for path in tmp_path.glob(f".checkpoint-2.*/{TENSORS_FILE}")):
        assert writer.poll() is None
        assert time.monotonic() < deadline
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=WAIT_SECONDS)
    assert list(tmp_path.glob(".checkpoint-2.*"))
    assert_intact(tmp_path)
    save(tmp_path, 2)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2"}


KILLED_AT_EVERY_CALL = """
import os, pathlib, shutil, signal, sys, torch
torch.set_num_threads(1)
from student_worker.checkpoints import CheckpointStore
from tests.integration.student_worker.checkpoint_places import assert_same, some_tensors
output, replaces = pathlib.Path(sys.argv[1]), sys.argv[2] == "replaces"

def kill_at(call):
    count = 0
    def strike(real):
        def struck(*arguments, **keys):
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keys)
        return struck
    for owner, names in ((os, ("fsync", "open", "unlink", "rmdir")), (pathlib.Path, ("rename", "replace", "mkdir"))):
        for name in names:
            setattr(owner, name, strike(getattr(owner, name)))

def sound(store):
    loaded = store.load()
    assert_same(loaded.tensors, some_tensors(loaded.metadata["attempt"]))
    return loaded.step, loaded.metadata["attempt"]

for call in range(1, 200):
    shutil.rmtree(output, ignore_errors=True)
    store = CheckpointStore(output, keep_last=2)
    for step in (1, 2):
        store.save(step, some_tensors(step), {"attempt": step}, background=False)
    step = 2 if replaces else 3
    best = {"step": step, "metric": "loss", "value": 0.5}
    if (child := os.fork()) == 0:
        kill_at(call)
        store.save(step, some_tensors(7), {"attempt": 7}, best=best, background=False)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    after = sound(store)
    assert after in ((2, 2), (step, 7)), (call, after)
    named = store.mend_best("loss")
    assert named == (best if after == (step, 7) else None), (call, named)
    store.save(4, some_tensors(4), {"attempt": 4}, background=False)
    assert sound(store) == (4, 4)
    kept = {path.name for path in output.iterdir()} - {"best.json"}
    assert all(name.startswith("checkpoint-") for name in kept), (call, kept)
    assert {"checkpoint-4"} < kept and len(kept) <= 3, (call, kept)
    if status == 0:
        print(call)
        sys.exit(0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
sys.exit("it was never complete")
"""


@pytest.mark.parametrize("what", ["replaces", "is new"])
def test_a_kill_at_any_call_to_the_system_leaves_a_sound_newest_and_no_litter(tmp_path: Path, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_CALL, str(tmp_path / "run"), what],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10, "so many moments to be killed at"


def test_what_killed_writers_left_is_removed_and_a_living_one_elsewhere_is_not(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    here = folder._host()
    abandoned = [f".checkpoint-1.{here}.{int(dead.stdout)}.aside", ".checkpoint-2.another-host-1.1.aside"]
    writing = [".checkpoint-3.another-host-1.1.aside", f".checkpoint-3.{here}.{os.getppid()}.aside"]
    for name in (*abandoned, *writing):
        (tmp_path / name).mkdir()
    long_ago = time.time() - 2 * folder.STALE_ASIDE_SECONDS
    os.utime(tmp_path / abandoned[1], (long_ago, long_ago))
    save(tmp_path, 4)
    assert names(tmp_path) == {"checkpoint-4", *writing}


def test_two_workers_that_write_one_step_at_once_leave_one_sound_checkpoint(tmp_path: Path) -> None:
    writers = [write_in_another_process(tmp_path, megabytes=1) for _ in range(3)]
    for writer in writers:
        _, errors = writer.communicate(timeout=WAIT_SECONDS)
        assert writer.returncode == 0, errors
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None
    assert loaded.step == 2
    assert names(tmp_path) == {"checkpoint-2"}
