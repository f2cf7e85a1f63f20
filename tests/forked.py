"""Commands of ours, and scripts of the tests, in processes forked from one that has imported what they need.

Importing torch and transformers anew takes five seconds of a core, and the tests start hundreds of workers and
teachers. What is forked is a process like any other: with its own environment and memory, it is killed, frozen and
waited for by its number. What only a new interpreter can show (a start that imports too much, a size of the heap,
variables that libraries read when they are loaded) is for `subprocess` itself.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import IO, Any

import pytest

OURS = ("stillhouse", "student_worker", "teacher_service")

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "3000", "HF_HUB_OFFLINE": "1"}
"""What libraries have read when they were loaded, whatever a command's own environment says to them."""

_PRELOADED = [
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "stillhouse.cli.main",
    "student_worker.cli",
    "teacher_service.cli",
]
_MOST_SECONDS = 600.0


def can_fork(argv: Sequence[str]) -> bool:
    """Tell whether this is a command of ours or a script, and nothing between that and Python."""
    return argv[0] == sys.executable and (argv[1].endswith(".py") or (argv[1] == "-m" and argv[2] in OURS))


class Popen:
    """`subprocess.Popen`, as far as tests need it. Where `stdout` or `stderr` is PIPE, `communicate` has its text."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        start_new_session: bool = False,
    ) -> None:
        assert can_fork(argv), argv
        self.args = list(argv)
        _prepare()
        self._kept = [self._keep() if where == subprocess.PIPE else None for where in (stdout, stderr)]
        out = self._kept[0] or stdout
        err = self._kept[1] or (out if stderr == subprocess.STDOUT else stderr)
        with Path(os.devnull).open("wb") as nowhere:
            files = [nowhere if file == subprocess.DEVNULL else file for file in (out, err)]
            numbers = [number if file is None else _number(file) for number, file in enumerate(files, 1)]
            self._process = _context().Process(
                target=_run,
                args=(self.args[1:], str(cwd or Path.cwd()), dict(os.environ if env is None else env), _Files(numbers)),
                kwargs={"start_new_session": start_new_session},
            )
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        _started.add(self)

    @property
    def returncode(self) -> int | None:
        """The exit status as it was last seen; None while it runs."""
        status: int | None = self._process.exitcode
        return status

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while it runs."""
        status = self.returncode
        if status is not None:
            _started.discard(self)
        return status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return the exit status.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        seconds = _MOST_SECONDS if timeout is None else timeout
        self._process.join(seconds)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, seconds)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Wait for its end; return what it wrote to each PIPE."""
        self.wait(timeout)
        return self._text(0), self._text(1)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.poll() is None:
            self._process.kill()

    def _keep(self) -> int:
        """Return the number of a file in memory."""
        number = os.memfd_create("output")
        weakref.finalize(self, os.close, number)
        return number

    def _text(self, which: int) -> str | None:
        number = self._kept[which]
        if number is None:
            return None
        return os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace")


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with its output captured as text.

    Raises:
        subprocess.TimeoutExpired: it ran on, and was killed.
        subprocess.CalledProcessError: with `check`, it ended with another status than 0.
    """
    process = Popen(argv, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
        process.wait()
    done = subprocess.CompletedProcess(process.args, process.wait(), out, err)
    if check:
        done.check_returncode()
    return done


class _Files:
    """Open files by their numbers here, which get numbers of their own in another process."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers: list[Any] = list(numbers)

    def __getstate__(self) -> list[Any]:
        return [reduction.DupFd(number) for number in self._numbers]

    def __setstate__(self, state: list[Any]) -> None:
        self._numbers = [each.detach() for each in state]

    def become_outputs(self) -> None:
        """Put them in the place of the standard output and the standard error."""
        for number, place in zip(self._numbers, (1, 2), strict=True):
            os.dup2(number, place)
        for number in set(self._numbers) - {1, 2}:
            os.close(number)


_started: set[Popen] = set()


@atexit.register
def _end_all() -> None:
    """Leave nothing behind, and let nothing be waited for."""
    for process in tuple(_started):
        process.kill()


@cache
def _context() -> Any:
    return multiprocessing.get_context("forkserver")


@cache
def _prepare() -> None:
    """Start the process that the others are forked from."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        _context().set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()


def _number(file: IO[Any] | int) -> int:
    return file if isinstance(file, int) else file.fileno()


def _run(words: list[str], folder: str, environment: dict[str, str], files: _Files, *, start_new_session: bool) -> None:
    """Be `python ...`; what a process does at its end is done here too."""
    if start_new_session:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    files.become_outputs()
    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    path = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [folder if is_module else str(Path(words[0]).parent), *filter(None, path)]
    try:
        if is_module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        with contextlib.suppress(OSError):
            atexit._run_exitfuncs()
