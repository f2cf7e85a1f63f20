"""Children end with their parent, gently or not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from stillhouse.processes import Child

WAIT_SECONDS = 20.0

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print(child.pid, flush=True)
time.sleep(300)
"""

PARENT = """
import sys, time
from pathlib import Path
from stillhouse.processes import Child
child = Child("sleeper", [sys.executable, "-c", "import time; time.sleep(300)"], Path(sys.argv[1]))
print(child.pid, flush=True)
time.sleep(300)
"""


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_output_and_exit_status_are_kept(tmp_path: Path) -> None:
    child = Child("speaker", [sys.executable, "-c", "print('one'); print('two'); exit(7)"], tmp_path / "log")
    assert child.wait(WAIT_SECONDS) == 7
    assert child.tail(1) == "two"


def test_a_child_that_ignores_sigterm_ends_with_all_that_it_started(tmp_path: Path) -> None:
    child = Child("stubborn", [sys.executable, "-c", STUBBORN], tmp_path / "log")
    assert wait_until(lambda: bool(child.tail().strip()))
    grandchild = int(child.tail())
    assert child.stop(grace_seconds=0.2) == -signal.SIGKILL
    assert wait_until(lambda: is_gone(grandchild))


def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(WAIT_SECONDS)
    assert wait_until(lambda: is_gone(child))
