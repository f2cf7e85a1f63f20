"""What is forked ends, prints and is struck like the same command in an interpreter of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.torture.service_process import wait_until

SECONDS = 60.0

SCRIPT = """
import atexit, os, sys, time
import beside
atexit.register(print, "at its end", flush=True)
print(os.getcwd(), os.environ["SAID"], sys.argv[1:], os.environ.get("HOME"))
print("to the side", file=sys.stderr)
if "wait" in sys.argv:
    open("ready", "w").close()
    time.sleep(600)
sys.exit(7)
"""


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "beside.py").touch()
    return [sys.executable, str(tmp_path / "script.py")]


@pytest.mark.parametrize(
    "words",
    [
        ["stillhouse", "--version"],
        ["stillhouse", "store", "inspect", "nowhere"],
        ["student_worker", "train", "--max-steps", "none"],
        ["teacher_service", "--no-such-flag"],
    ],
    ids=" ".join,
)
def test_a_command_says_and_ends_the_same(tmp_path: Path, words: list[str]) -> None:
    argv = [sys.executable, "-m", *words]
    ours = forked.run(argv, cwd=tmp_path, timeout=SECONDS)
    theirs = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


def test_a_script_has_its_own_environment_folder_and_neighbours(script: list[str], tmp_path: Path) -> None:
    done = forked.run([*script, "a", "b"], env={"SAID": "only this"}, cwd=tmp_path, timeout=SECONDS)
    assert done.returncode == 7
    assert done.stdout == f"{tmp_path} only this ['a', 'b'] None\nat its end\n"
    assert done.stderr == "to the side\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_struck_ends_by_the_signal(script: list[str], tmp_path: Path, number: signal.Signals) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = forked.Popen(
            [*script, "wait"],
            env={"SAID": "it"},
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_until((tmp_path / "ready").exists)
    assert os.getpgid(process.pid) == process.pid
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(number)
    assert process.wait(SECONDS) == -number
    assert "to the side" in (tmp_path / "log").read_text()


def test_what_runs_too_long_is_ended(script: list[str], tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run([*script, "wait"], env={"SAID": "it"}, cwd=tmp_path, timeout=0.01)


def test_other_programs_are_not_for_it() -> None:
    assert forked.can_fork([sys.executable, "-m", "stillhouse", "--version"])
    assert not forked.can_fork([sys.executable, "-m", "http.server"])
    assert not forked.can_fork(["sleep", "1"])
    assert not forked.can_fork([sys.executable, "-c", "pass"])
