"""Workers that are all started alike find a number and a GPU of their own, and give both back when they end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.errors import ConfigurationError
from student_worker.devices import VISIBLE_VARIABLE, Gpu
from student_worker.locks import try_lock
from student_worker.places import gpus_of_their_own, placed
from student_worker.recipe.schema import Recipe

HOLDER = "import sys, pathlib; from student_worker.locks import try_lock\n"
HOLDER += "lock = try_lock(pathlib.Path(sys.argv[1])); print(lock is not None, flush=True); sys.stdin.read()"


def recipe(folder: Path, **keys: object) -> Recipe:
    values = {
        "teacher": "127.0.0.1:8001",
        "output_dir": folder / "run",
        "student": {"kind": "fixture"},
        "data": {"sources": ["x"]},
    }
    return Recipe.model_validate({**values, **keys})


def no_gpus() -> list[Gpu]:
    return []


def test_numbers_are_the_lowest_that_are_free(tmp_path: Path) -> None:
    alike = recipe(tmp_path, worker_index_by_lock=True)
    with placed(alike, no_gpus) as first:
        with placed(alike, no_gpus) as second, placed(alike, no_gpus) as third:
            assert [one.worker_index for one in (first, second, third)] == [0, 1, 2]
        with placed(alike, no_gpus) as again:
            assert again.worker_index == 1


def test_a_worker_that_is_told_its_number_takes_none(tmp_path: Path) -> None:
    told = recipe(tmp_path, worker_index=3)
    with placed(told, no_gpus) as own:
        assert own == told
    assert not (tmp_path / "run").exists()


def test_a_gpu_is_taken_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE_VARIABLE, "GPU-a")
    sharing = recipe(tmp_path, device_locks=tmp_path / "locks")
    for _ in range(2):
        with placed(sharing, lambda: [Gpu("GPU-a", "NVIDIA H100", 0)]):
            assert try_lock(tmp_path / "locks" / "GPU-a.0.lock") is None


def test_a_worker_of_the_cpu_takes_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device_locks has no effect"):
        recipe(tmp_path, device_locks=tmp_path / "locks", device="cpu")


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    argv = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert try_lock(path) is None
        holder.send_signal(signal.SIGKILL)
    lock = try_lock(path)
    assert lock is not None
    lock.release()


def test_a_child_of_a_worker_does_not_keep_its_lock(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "a.lock")
    assert lock is not None
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        lock.release()
        assert try_lock(tmp_path / "a.lock") is not None
        assert child.poll() is None


def test_a_folder_that_cannot_hold_locks_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no folder")
    with (
        pytest.raises(ConfigurationError, match=r"run/worker-0.lock' cannot be made"),
        placed(recipe(tmp_path, worker_index_by_lock=True), no_gpus),
    ):
        pass


def test_workers_started_together_share_out_the_gpus_unless_the_recipe_says_how(tmp_path: Path) -> None:
    told = gpus_of_their_own(recipe(tmp_path))
    assert told["STUDENT_SHARE_DEVICES"] == "true"
    assert Path(told["STUDENT_DEVICE_LOCKS"]).is_absolute()
    assert gpus_of_their_own(recipe(tmp_path, device="cpu")) == {}
    assert gpus_of_their_own(recipe(tmp_path, device="cuda:1")) == {}
    assert gpus_of_their_own(recipe(tmp_path, device_locks=tmp_path)) == {}
