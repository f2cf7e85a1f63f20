"""Several processes, one exit code, and nothing left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from student_worker.elastic.launch import MAX_CRASHES, run_local
from student_worker.elastic.lighthouse import Lighthouse

WAIT_SECONDS = 30.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def python(program: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        f"import os, signal, sys, time\nindex = int(os.environ['STUDENT_WORKER_INDEX'])\n{program}",
    ]


def run(folder: Path, program: str, workers: int = 2) -> tuple[int, list[str]]:
    lines: list[str] = []
    code = run_local(workers, python(program), log_dir=folder, grace_seconds=5, echo=lines.append)
    return code, lines


def test_all_done_is_0_and_every_line_bears_its_workers_name(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "print('one', index); print('two', end='')", workers=3)
    assert code == 0
    assert sorted(lines) == sorted(f"worker-{i}: {text}" for i in range(3) for text in (f"one {i}", "two"))
    assert (tmp_path / "worker-2.log").read_text() == "one 2\ntwo"


def test_workers_are_told_lighthouse_and_token(tmp_path: Path) -> None:
    names = "['STUDENT_LIGHTHOUSE', 'STUDENT_RUN_TOKEN']"
    code, lines = run(tmp_path, f"print(*(os.environ[name] for name in {names}))")
    first, second = (line.split()[1:] for line in lines)
    assert code == 0
    assert first == second
    lighthouse, token = first
    assert lighthouse.startswith("127.0.0.1:")
    assert len(token) == 32


def test_a_single_worker_gets_no_lighthouse(tmp_path: Path) -> None:
    _, lines = run(tmp_path, "print('STUDENT_LIGHTHOUSE' in os.environ)", workers=1)
    assert lines == ["worker-0: False"]


@pytest.mark.parametrize("fatal", [2, 3])
def test_a_worker_that_says_2_or_3_ends_all_at_once(tmp_path: Path, fatal: int) -> None:
    code, lines = run(tmp_path, f"sys.exit({fatal}) if index else time.sleep(300)")
    assert code == fatal
    assert not any("started again" in line for line in lines)


def test_a_worker_that_dies_is_started_again_while_the_others_go_on(tmp_path: Path) -> None:
    marker = tmp_path / "died"
    dying = f"os.path.exists({str(marker)!r}) or (open({str(marker)!r}, 'w'), os.kill(os.getpid(), signal.SIGKILL))"
    waiting = f"while not os.path.exists({str(marker)!r}): time.sleep(0.01)"
    code, lines = run(tmp_path, f"if index:\n    {dying}\nelse:\n    {waiting}\n    time.sleep(0.5)")
    assert code == 0
    assert "worker-1: ended with -9, and is started again" in lines
    assert not any(line.startswith("worker-0: ended") for line in lines)


def test_workers_that_always_crash_are_given_up(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "print('start'); sys.exit(7)")
    assert code == 1
    assert lines.count("worker-0: start") == lines.count("worker-1: start") == MAX_CRASHES
    assert f"worker-0: ended with 7, {MAX_CRASHES} times without coming further; given up" in lines


def test_a_worker_that_comes_further_each_time_may_crash_as_often_as_it_will(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    program = f"""
from pathlib import Path
from student_worker.progress import report_progress
start = len(list(Path({str(marks)!r}).iterdir()))
(Path({str(marks)!r}) / str(start)).touch()
report_progress(start * 10)
sys.exit(0 if start == {2 * MAX_CRASHES} else 1)
"""
    code, _ = run(tmp_path, program, workers=1)
    assert code == 0


def test_a_worker_that_crashes_at_the_same_step_again_and_again_is_given_up(tmp_path: Path) -> None:
    program = "from student_worker.progress import report_progress; print('start'); report_progress(90); sys.exit(1)"
    code, lines = run(tmp_path, program, workers=1)
    assert code == 1
    assert lines.count("worker-0: start") == MAX_CRASHES


def test_a_worker_that_was_told_to_leave_is_not_started_again(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "print('start'); sys.exit(143 if index else 0)")
    assert code == 0
    assert lines.count("worker-1: start") == 1


LAUNCHER = """
import sys
from pathlib import Path
from student_worker.elastic.launch import run_local
sys.exit(run_local(2, [sys.executable, "-c", sys.argv[2]], log_dir=Path(sys.argv[1]), grace_seconds=1))
"""

PATIENT = """
import os, signal, sys, time
def leave(*_):
    print("told", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print("pid", os.getpid(), flush=True)
time.sleep(300)
"""

STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("pid", os.getpid(), flush=True)
time.sleep(300)
"""


def launch(folder: Path, program: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(folder), program], stderr=subprocess.DEVNULL, start_new_session=True
    )
    logs = [folder / "worker-0.log", folder / "worker-1.log"]
    wait_until(lambda: all(log.exists() and "\n" in log.read_text() for log in logs), "both workers")
    return launcher, [int(log.read_text().split()[1]) for log in logs]


def are_gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_reaches_every_worker_once_and_is_143(tmp_path: Path, number: signal.Signals) -> None:
    launcher, pids = launch(tmp_path, PATIENT)
    launcher.send_signal(number)
    assert launcher.wait(WAIT_SECONDS) == 143
    assert are_gone(pids)
    assert [(tmp_path / f"worker-{i}.log").read_text().count("told") for i in range(2)] == [1, 1]


def test_workers_that_ignore_it_are_killed_after_the_grace(tmp_path: Path) -> None:
    launcher, pids = launch(tmp_path, STUBBORN)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(WAIT_SECONDS) == 143
    assert are_gone(pids)


def test_a_second_interruption_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    program = LAUNCHER.replace("grace_seconds=1", "grace_seconds=1000")
    launcher = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), STUBBORN], stderr=subprocess.PIPE)
    logs = [tmp_path / "worker-0.log", tmp_path / "worker-1.log"]
    wait_until(lambda: all(log.exists() and "\n" in log.read_text() for log in logs), "both workers")
    deadline = time.monotonic() + WAIT_SECONDS
    while launcher.poll() is None:
        assert time.monotonic() < deadline
        with contextlib.suppress(ProcessLookupError):
            launcher.send_signal(signal.SIGINT)
        time.sleep(0.2)
    launcher.communicate()
    assert launcher.returncode == 143
    assert are_gone([int(log.read_text().split()[1]) for log in logs])


def test_no_worker_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    launcher, pids = launch(tmp_path, PATIENT)
    launcher.kill()
    launcher.wait(WAIT_SECONDS)
    wait_until(lambda: are_gone(pids), "the workers to end")


def test_the_lighthouse_verb_serves_until_sigterm(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    program = (
        "import sys; from pathlib import Path; from student_worker.elastic.lighthouse import serve; "
        "sys.exit(serve('127.0.0.1', 0, ready_file=Path(sys.argv[1])))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(ready)], stdout=subprocess.PIPE, text=True)
    wait_until(ready.exists, "the lighthouse")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 143
    assert output == f"lighthouse at {ready.read_text()}\n"


def test_a_lighthouse_says_when_its_port_is_taken() -> None:
    from stillhouse.errors import ConfigurationError

    with Lighthouse() as first, pytest.raises(ConfigurationError, match=f"cannot bind to 127.0.0.1:{first.port}"):
        Lighthouse(port=first.port)
