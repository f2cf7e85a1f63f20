"""How far loading has come is heard by whoever waits, and by nobody else."""

from __future__ import annotations

import threading

from teacher_service.progress import Progress, Stage, report


def test_a_report_is_heard_with_its_part() -> None:
    progress = Progress()
    assert str(progress) == "starting"
    with progress.heard():
        report("weights", 37, 100)
    assert progress.stage == Stage("weights", 0.37)
    assert str(progress) == "weights 37%"


def test_a_stage_of_unknown_length_has_a_name_alone() -> None:
    progress = Progress()
    with progress.heard():
        report("fingerprint")
    assert str(progress) == "fingerprint"


def test_a_part_never_leaves_its_bounds() -> None:
    progress = Progress()
    with progress.heard():
        report("weights", 12, 10)
        assert str(progress) == "weights 100%"
        report("weights", -1, 10)
        assert str(progress) == "weights 0%"


def test_nobody_listening_is_no_error() -> None:
    progress = Progress()
    with progress.heard():
        pass
    report("weights", 1, 2)
    assert str(progress) == "starting"


def test_two_loading_threads_are_kept_apart() -> None:
    one, other = Progress(), Progress()

    def load(progress: Progress, stage: str) -> None:
        with progress.heard():
            barrier.wait(5)
            report(stage)
            barrier.wait(5)

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=load, args=args) for args in ((one, "convert"), (other, "probe"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert (str(one), str(other)) == ("convert", "probe")
