"""A disk that fills up under a capture: it is named, nothing that was written is lost, and all goes on exactly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.capture_run import ONE_BY_ONE, CaptureRun, files, fixture_teacher, write_corpus
from tests.torture.students.test_full_disk import SmallDisk

ROOM = 32 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A small disk where the store will be; not mounted yet."""
    small = SmallDisk(tmp_path / "disk")
    yield small
    small.unmount()


def fill(folder: Path, leave: int) -> Path:
    """Take the room of a disk, but for so many bytes, as a neighbour would."""
    neighbour = folder / "neighbour"
    with neighbour.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))
    return neighbour


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("encoding", ["sampled:50", "dense:f32"])
def test_a_disk_that_a_neighbour_fills_stops_a_capture_which_then_goes_on(
    encoding: str, disk: SmallDisk, tmp_path: Path
) -> None:
    corpus = [*write_corpus(tmp_path / "corpus"), "--encoding", encoding]
    with fixture_teacher(tmp_path / "service") as service:
        flags = ("--teacher", service.grpc, *corpus, *ONE_BY_ONE)
        unbroken = CaptureRun(tmp_path / "unbroken", *flags)
        assert unbroken.run() == 0, unbroken.said()
        disk.mount(ROOM)
        run = CaptureRun(disk.folder / "store", *flags)
        run.log = tmp_path / "run.log"
        run.start()
        assert run.until_written(20_000)
        neighbour = fill(disk.folder, leave=10_000)
        assert run.end() == 2, run.said()
        last = run.said().splitlines()[-1]
        assert last.startswith("error: ")
        assert "No space left on device" in last
        assert "start again with the same command" in last
        there = {name: data for name, data in files(run.output).items() if name.startswith(("train/", "held_out/"))}
        assert there.items() <= files(unbroken.output).items()
        # With the disk as it is, nothing is begun.
        assert run.run() == 2
        neighbour.unlink()
        assert run.run() == 0, run.said()
        assert files(run.output) == files(unbroken.output)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_disk_that_is_full_and_a_kill_together_lose_nothing(disk: SmallDisk, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    with fixture_teacher(tmp_path / "service") as service:
        flags = ("--teacher", service.grpc, *corpus, *ONE_BY_ONE)
        unbroken = CaptureRun(tmp_path / "unbroken", *flags)
        assert unbroken.run() == 0, unbroken.said()
        disk.mount(ROOM)
        run = CaptureRun(disk.folder / "store", *flags)
        run.log = tmp_path / "run.log"
        assert run.stop_after(15_000, signal.SIGKILL) == -signal.SIGKILL
        neighbour = fill(disk.folder, leave=0)
        assert run.run() == 2
        assert "disk" in run.said().splitlines()[-1]
        neighbour.unlink()
        assert run.run() == 0, run.said()
        assert files(run.output) == files(unbroken.output)
