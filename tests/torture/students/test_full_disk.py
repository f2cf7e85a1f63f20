"""A disk that fills up under a run: it is named, what was there before stays whole, and the run goes on exactly."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.students.proof import Proof, assert_same, prove
from tests.torture.students.runs import Run
from tests.torture.students.scene import STEPS, Scene
from tests.torture.students.services import LighthouseProcess

START = "between-steps@0"


class SmallDisk:
    """A file system of its own, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, size: int) -> None:
        """Make it, or skip loudly where that is not allowed."""
        self.folder.mkdir(parents=True)
        argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.folder)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"NOT TESTED: a small disk cannot be mounted here: {done.stderr.strip()}")

    def grow(self, size: int) -> None:
        """Free space, as somebody would who was told to."""
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def unmount(self) -> None:
        """Take it away, if it was made."""
        if self.folder.is_mount():
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A small disk where a run's output will be; not mounted yet."""
    small = SmallDisk(tmp_path / "run" / "output")
    yield small
    small.unmount()


def size_of(proof: Proof) -> int:
    """Return the bytes of one checkpoint."""
    return sum(tensor.nbytes for tensor in proof.checkpoint.values())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_whole_folder_of_a_run_is_on_a_disk_that_fills_up(
    disk: SmallDisk, scene: Scene, undisturbed: Proof, tmp_path: Path
) -> None:
    size = size_of(undisturbed)
    with Run(scene, tmp_path / "run") as run:
        disk.mount(int(1.6 * size))
        run.start()
        assert run.end() == {"worker-0": 2}, run.told()
        last = run.log().splitlines()[-1]
        assert "No space left on device" in last
        assert "ree space" in last
        assert "resume" in last
        assert [path.name for path in run.output.glob("checkpoint-*")] == ["checkpoint-4"]
        assert not list(run.output.glob(".*.aside"))
        disk.grow(40 * size)
        run.start()
        assert run.end() == {"worker-0": 0}, run.told()
        assert '"from_step": 4' in run.log()
        assert_same(prove(run, STEPS), undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_disk_of_one_of_two_hosts_fills_up(
    disk: SmallDisk, scene: Scene, undisturbed: Proof, lighthouse: LighthouseProcess, tmp_path: Path
) -> None:
    """Each host has a folder of its own. The one that writes has to leave; the other goes on, and writes from then."""
    address, points = lighthouse.address, f"{START}=hold"
    with (
        Run(scene, tmp_path / "run", lighthouse=address, points=points) as full,
        Run(scene, tmp_path / "other", lighthouse=address, points=points) as roomy,
    ):
        disk.mount(int(1.6 * size_of(undisturbed)))
        full.start(0)
        roomy.start(1)
        roomy.until(lambda: full.is_ready(0) and roomy.is_ready(1), "both workers")
        for run in (full, roomy):
            run.let_go(START)
        assert full.end() == {"worker-0": 2}, full.told()
        assert "No space left on device" in full.log().splitlines()[-1]
        assert [path.name for path in full.output.glob("checkpoint-*")] == ["checkpoint-4"]
        assert roomy.end() == {"worker-1": 0}, roomy.told()
        assert roomy.places["worker-1"].starts == 1
        assert_same(prove(roomy, STEPS), undisturbed)
