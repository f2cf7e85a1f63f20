"""Fail-points: understood or refused, struck once, seen by a file, and nothing at all when nobody armed them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stillhouse.errors import ConfigurationError
from student_worker import failpoints
from student_worker.failpoints import Armed, fail_point, parse


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.setenv(failpoints.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.delenv(failpoints.WORKER_VARIABLE, raising=False)
    return monkeypatch


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_form_is_understood() -> None:
    text = "mid-step@3/1=kill, mid-reduce@5=freeze:4.5,mid-heal@*=stop,between-steps@0=hold"
    assert parse(text) == (
        Armed("mid-step", 3, 1, "kill"),
        Armed("mid-reduce", 5, None, "freeze", 4.5),
        Armed("mid-heal", None, None, "stop"),
        Armed("between-steps", 0, None, "hold"),
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "mid-step", "mid-step@3", "mid-step=kill", "mid-step@-1=kill", "mid-step@3=die", "mid-stop@3=kill"),
        *("mid-step@3=freeze", "mid-step@3=freeze:", "mid-step@3=freeze:-1", "mid-step@3/a=kill", "mid-step@3=kill,"),
    ],
)
def test_what_is_no_point_is_refused_by_its_text(arm: pytest.MonkeyPatch, text: str) -> None:
    arm.setenv(failpoints.VARIABLE, text)
    with pytest.raises(ConfigurationError, match=r"STILLHOUSE_FAILPOINTS: '.*' is no fail-point.*mid-step.*hold"):
        fail_point("mid-step", 3)


def test_a_point_strikes_once_at_its_step_and_leaves_a_file(
    arm: pytest.MonkeyPatch, tmp_path: Path, slept: list[float]
) -> None:
    arm.setenv(failpoints.VARIABLE, "mid-step@3=freeze:7")
    fail_point("mid-step", 2)
    fail_point("before-vote", 3)
    assert (slept, files(tmp_path)) == ([], [])
    fail_point("mid-step", 3)
    fail_point("mid-step", 3)
    assert (slept, files(tmp_path)) == ([7], ["mid-step@3.struck"])
    assert (tmp_path / "mid-step@3.struck").read_text() == f"{os.getpid()} 3\n"


def test_a_point_may_be_of_any_step_and_of_one_worker(
    arm: pytest.MonkeyPatch, tmp_path: Path, slept: list[float]
) -> None:
    arm.setenv(failpoints.VARIABLE, "mid-heal@*/1=freeze:7,mid-step@0/0=freeze:8")
    fail_point("mid-heal", 12)
    assert slept == []
    fail_point("mid-step", 0)  # who has no number is the first
    arm.setenv(failpoints.WORKER_VARIABLE, "1")
    fail_point("mid-heal", 13)
    fail_point("mid-heal", 14)
    assert (slept, files(tmp_path)) == ([8, 7], ["mid-heal@any-1.struck", "mid-step@0-0.struck"])


def test_a_freeze_is_bounded(arm: pytest.MonkeyPatch, slept: list[float]) -> None:
    arm.setenv(failpoints.VARIABLE, "mid-step@3=freeze:99999")
    fail_point("mid-step", 3)
    assert slept == [failpoints.MAX_WAIT_SECONDS]


def test_hold_keeps_everybody_until_the_file_is_there(arm: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arm.setenv(failpoints.VARIABLE, "between-steps@2=hold")
    waiting = [threading.Thread(target=fail_point, args=("between-steps", 2), daemon=True) for _ in range(2)]
    for thread in waiting:
        thread.start()
    deadline = time.monotonic() + 10
    while not (tmp_path / "between-steps@2.struck").exists():
        assert time.monotonic() < deadline
    waiting[0].join(0.1)
    assert all(thread.is_alive() for thread in waiting)
    (tmp_path / "between-steps@2.go").touch()
    for thread in waiting:
        thread.join(10)
    assert not any(thread.is_alive() for thread in waiting)
    fail_point("between-steps", 2)  # passes at once


@pytest.mark.parametrize(("action", "number"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_kill_and_stop_strike_the_whole_process_after_the_file(
    tmp_path: Path, action: str, number: signal.Signals
) -> None:
    program = "from student_worker.failpoints import fail_point; fail_point('after-vote', 1)"
    armed = {failpoints.VARIABLE: f"after-vote@1={action}", failpoints.FOLDER_VARIABLE: str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **armed})
    try:
        # Popen has no word for a child that has stopped.
        how = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        assert how is not None
        assert how.si_status == number
        assert files(tmp_path) == ["after-vote@1.struck"]
    finally:
        process.kill()
        process.wait(10)


def test_points_that_nobody_armed_look_at_nothing(arm: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arm.delenv(failpoints.VARIABLE, raising=False)
    arm.setattr(failpoints, "parse", None)
    fail_point("mid-step", 3)
    assert files(tmp_path) == []
