"""The `stillhouse` command in processes forked from one that has imported what every verb imports.

A page has up to twenty commands, and starting each anew would take seconds: most of a test's time. What a process of
its own does at its end is done here too.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

PRELOADED = [
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "stillhouse.cli.main",
    "student_worker.cli",
    "teacher_service.cli",
]


@dataclass(frozen=True)
class Running:
    """A command under way, and where it prints."""

    process: ForkServerProcess
    stdout: Path
    stderr: Path

    def ended(self, seconds: float) -> int:
        """Wait for its end; return the exit status."""
        self.process.join(seconds)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"it runs on after {seconds:.0f} s:\n{self.said()}")
        return status

    def said(self) -> str:
        """Return all that it printed."""
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in (self.stdout, self.stderr))


def prepare(environment: Mapping[str, str]) -> None:
    """Start the process that the others are forked from; libraries read their variables when they are imported."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()


def start(words: list[str], folder: Path, environment: Mapping[str, str]) -> Running:
    """Start `stillhouse` with these words in a folder."""
    stdout, stderr = folder / "stdout.txt", folder / "stderr.txt"
    arguments = (words, str(folder), dict(environment), str(stdout), str(stderr))
    process = multiprocessing.get_context("forkserver").Process(target=_command, args=arguments)
    process.start()
    return Running(process, stdout, stderr)


def _command(words: list[str], folder: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for path, number in ((stdout, 1), (stderr, 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = ["stillhouse", *words]
    from stillhouse.cli import main

    try:
        main()
    finally:
        with contextlib.suppress(OSError):
            atexit._run_exitfuncs()
