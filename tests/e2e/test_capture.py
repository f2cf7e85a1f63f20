"""A capture by real processes: stopped and started again, split and joined, and with a teacher that goes or changes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse import open_store
from stillhouse.store.merge import merge
from tests.e2e.capture_run import ONE_BY_ONE, CaptureRun, files, fixture_teacher, kill_at_random, write_corpus
from tests.torture.service_process import ServiceProcess, free_port


@pytest.fixture(scope="module")
def fixture_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The module's tests share it."""
    with fixture_teacher(tmp_path_factory.mktemp("capture-teacher")) as service:
        yield service


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of a corpus of some hundred samples."""
    return write_corpus(tmp_path_factory.mktemp("capture-corpus"))


@pytest.fixture(scope="module")
def unbroken(
    fixture_service: ServiceProcess, corpus: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of a capture that nobody disturbed."""
    run = CaptureRun(tmp_path_factory.mktemp("unbroken") / "store", "--teacher", fixture_service.grpc, *corpus)
    assert run.run() == 0, run.said()
    found = files(run.output)
    assert len([name for name in found if name.startswith("train/")]) > 4
    return found


def total(found: dict[str, bytes]) -> int:
    return sum(map(len, found.values()))


def test_a_capture_that_is_killed_and_one_that_is_told_to_end_go_on_to_the_same_files(
    fixture_service: ServiceProcess, corpus: list[str], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    run = CaptureRun(tmp_path / "store", "--teacher", fixture_service.grpc, *corpus, *ONE_BY_ONE)
    assert run.stop_after(total(unbroken) // 3, signal.SIGKILL) == -signal.SIGKILL
    assert not (run.output / "manifest.json").exists()
    assert run.stop_after(total(unbroken) // 4, signal.SIGTERM) == 143, run.said()
    assert '"signal": "SIGTERM"' in run.said()
    assert not (run.output / "manifest.json").exists()
    assert run.run() == 0, run.said()
    assert files(run.output) == unbroken
    assert run.run() == 0
    assert "was complete before" in run.said()


def test_three_parts_of_which_one_was_killed_join_to_the_unsplit_capture(
    fixture_service: ServiceProcess, corpus: list[str], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    runs = [
        CaptureRun(
            tmp_path / f"part-{i}", "--teacher", fixture_service.grpc, *corpus, *ONE_BY_ONE,
            environment={"CAPTURE_PART": f"{i}/3"},
        )
        for i in range(3)
    ]  # fmt: skip
    for run in runs:
        run.start()
    if runs[1].until_written(1000):
        runs[1].process.signal(signal.SIGKILL)
        runs[1].end()
        runs[1].start()
    assert [run.end() for run in runs] == [0, 0, 0], [run.said() for run in runs]
    merge([run.output for run in runs], tmp_path / "whole")
    assert files(tmp_path / "whole") == unbroken


@pytest.mark.long
def test_two_processes_do_not_fill_one_folder(
    fixture_service: ServiceProcess, corpus: list[str], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    flags = ("--teacher", fixture_service.grpc, *corpus, *ONE_BY_ONE)
    first, second = CaptureRun(tmp_path / "store", *flags), CaptureRun(tmp_path / "store", *flags)
    second.log = tmp_path / "second.log"
    first.start()
    assert first.until_written(1000)
    first.process.signal(signal.SIGSTOP)
    assert second.run() == 2
    assert "is being filled by another process" in second.said()
    first.process.signal(signal.SIGCONT)
    assert first.end() == 0
    assert files(first.output) == unbroken


def test_a_teacher_that_goes_away_is_waited_for_and_the_capture_goes_on_when_it_is_back(
    corpus: list[str], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    port = str(free_port())
    flags = ("--teacher", f"127.0.0.1:{port}", "--teacher-wait-seconds", "2", *corpus, *ONE_BY_ONE)
    run = CaptureRun(tmp_path / "store", *flags)
    with fixture_teacher(tmp_path / "first", "--grpc-port", port) as service:
        run.start()
        assert run.until_written(3000)
        service.process.signal(signal.SIGKILL)
        assert run.end() == 1, run.said()
    assert "waiting_for_teacher" in run.said()
    assert "teacher_wait_seconds, 2 s" in run.said()
    # A job that is started again while nobody is there is to be started once more, not given up.
    assert run.run() == 1
    with fixture_teacher(tmp_path / "second", "--grpc-port", port):
        assert run.run() == 0, run.said()
    assert files(run.output) == unbroken


@pytest.mark.long
def test_a_teacher_that_has_become_another_half_way_ends_the_capture_and_the_good_part_is_kept(
    corpus: list[str], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    port = str(free_port())
    run = CaptureRun(tmp_path / "store", "--teacher", f"127.0.0.1:{port}", *corpus, *ONE_BY_ONE)
    with fixture_teacher(tmp_path / "first", "--grpc-port", port) as service:
        fingerprint = _fingerprint(service)
        run.start()
        assert run.until_written(3 * total(unbroken) // 4)
        service.process.signal(signal.SIGKILL)
    run.until_it_says("waiting_for_teacher")
    with fixture_teacher(tmp_path / "other", "--grpc-port", port, vocabulary=301) as service:
        assert run.end() == 2, run.said()
        last = run.said().splitlines()[-1]
        assert last.startswith("error: the teacher has changed since this capture began")
        assert fingerprint in last
        assert _fingerprint(service) in last
        shards = list((run.output / "train").glob("*.parquet"))
        assert shards
        assert {f"train/{path.name}": path.read_bytes() for path in shards}.items() <= unbroken.items()
        # The other teacher's answers are never put beside them.
        assert run.run() == 2
        assert "teacher.fingerprint" in run.said().splitlines()[-1]
    with fixture_teacher(tmp_path / "again", "--grpc-port", port):
        assert run.run() == 0, run.said()
    assert files(run.output) == unbroken


def _fingerprint(service: ServiceProcess) -> str:
    from stillhouse import TeacherClient

    with TeacherClient(service.grpc) as client:
        return client.describe().fingerprint


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_capture_that_is_killed_five_times_at_random_moments_is_the_unbroken_one(
    fixture_service: ServiceProcess, corpus: list[str], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    run = CaptureRun(tmp_path / "store", "--teacher", fixture_service.grpc, *corpus, *ONE_BY_ONE)
    assert kill_at_random(run, 5, total(unbroken), seed=11) == 5
    assert run.run() == 0, run.said()
    assert files(run.output) == unbroken
    store = open_store(run.output)
    assert len(store.train) > 300
    store.close()
