"""Runs a page's commands in their order, each as it stands but for what is the reader's own.

A reader has a model, a teacher's address, texts and time of their own. `Reader` says what stands in their place here:
tiny models, a teacher on a free port, a few texts under the names that the pages use, and fewer steps. Everything else
of a command is the page's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stillhouse.processes import Child
from tests import forked
from tests.docs.pages import ROOT, Command, fences, words_of
from tests.torture.service_process import OwnProcess, free_port, wait_until

SECONDS = 240.0
"""For one command, on a machine that does much else."""

IN_A_SHELL = ("stillhouse", "source", "mkdir", "curl", "openssl", "python")
SERVICES = ("stillhouse teacher serve", "stillhouse student lighthouse")
ELSEWHERE = ("stillhouse demo", "stillhouse compare", "python -m")
"""They take minutes however small: `checks.TESTED_BY` names their tests, and benchmarks are run by hand."""

SMALLER = {
    "--max-steps 2000": "--max-steps 3",
    "max_steps: 200\n": "max_steps: 6\n",
    "eval_steps: 50\n": "eval_steps: 3\n",
    "# block_size: 1024\n": "block_size: 64\n",
    "--smoke-steps 20": "--smoke-steps 2",
    "--workers 4": "--workers 2",
    "--seconds 30": "--seconds 1",
    "--seconds 5": "--seconds 1",
    "--clients 16": "--clients 2",
    "--samples 100": "--samples 2",
    "--device cuda": "--device cpu",
}
"""What the pages say for real sizes and machines, and what it is here; in the files that they show too."""


def runs(command: Command) -> bool:
    """Say whether a command is run here; all others are only checked."""
    if not command.whole or command.text.startswith(ELSEWHERE):
        return False
    return "\n" in command.text.strip() or command.text.split()[0] in IN_A_SHELL


@dataclass(frozen=True)
class Reader:
    """What is the reader's own, and what it is here.

    Attributes:
        names: of models and files, as whole words.
        grpc: the address of the teacher that is always there, deterministic.
        http: its address for HTTP, without a scheme.
        redis_url: of a Redis.
        environment: of every command.
    """

    names: Mapping[str, str]
    grpc: str
    http: str
    redis_url: str
    environment: Mapping[str, str]


@dataclass
class Place:
    """A folder in which one page's commands run, and the services that these have started."""

    page: str
    folder: Path
    reader: Reader
    grpc: str = field(init=False)
    http: str = field(init=False)
    _services: ExitStack = field(default_factory=ExitStack)
    _started: int = 0

    def __post_init__(self) -> None:
        """Put what the page's commands find: the programs, and the files that the page tells to save."""
        self.grpc, self.http = self.reader.grpc, self.reader.http
        for name, module in (("stillhouse", "-m stillhouse "), ("python", "")):
            program = self.folder / ".venv" / "bin" / name
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module}"$@"\n', encoding="utf-8")
            program.chmod(0o755)
        (self.folder / ".venv" / "bin" / "activate").touch()
        # An answer that says no is an error.
        (self.folder / ".curlrc").write_text("fail\nsilent\nshow-error\n", encoding="utf-8")
        (self.folder / "deploy").symlink_to(ROOT / "deploy")

    def close(self) -> None:
        """End the services that are still there."""
        self._services.close()

    def save_files(self) -> None:
        """Save the fences that say under which name: `# NAME` is their first line."""
        for fence in fences(self.page, "yaml", "python"):
            if name := re.match(r"# ([\w-]+\.(?:yaml|py))\n", fence.text):
                (self.folder / name[1]).write_text(self._here(fence.text), encoding="utf-8")

    def run(self, command: Command, *, interrupted: bool = False) -> str:
        """Run a command to its end, or start the service that it is; return what it printed."""
        text = self._here(command.text)
        if command.text.startswith(SERVICES):
            self._start(text)
            return ""
        if interrupted:
            self._interrupt(text)
            return ""
        in_fork = command.text.startswith("stillhouse ")
        status, printed, said = self._run_forked(text) if in_fork else self._run_in_a_shell(text)
        if command.text.startswith("stillhouse doctor") and _finds_only_this_machine_wanting(printed):
            return printed
        assert status == 0, f"{command}\n{text}\nends with {status}:\n{said}"
        if command.text.startswith("stillhouse student recipe init"):
            self._make_ones_own(self.folder / words_of(text)[-1])
        return printed

    def _run_forked(self, text: str) -> tuple[int, str, str]:
        """Run a command of ours; return its status, what it printed, and that with its log."""
        done = forked.run(self._argv(text), cwd=self.folder, env=self._environment(), timeout=SECONDS)
        return done.returncode, done.stdout, done.stdout + done.stderr

    def _argv(self, text: str) -> list[str]:
        return [sys.executable, "-m", "stillhouse", *words_of(text)[1:]]

    def _run_in_a_shell(self, text: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.returncode, done.stdout, done.stdout + done.stderr

    def _make_ones_own(self, recipe: Path) -> None:
        # What the verb writes has the teacher's usual address, a folder that the page may use, and a real length.
        text = self._here(recipe.read_text(encoding="utf-8"))
        if self.page != "docs/recipe.md":
            text = text.replace('"runs/first"', '"runs/recipe"')
        recipe.write_text(text, encoding="utf-8")

    def _here(self, text: str) -> str:
        """Put what is here in the place of what is the reader's own."""
        own = {
            "http://127.0.0.1:8010": f"http://{self.http}",
            "redis://127.0.0.1:6379/0": self.reader.redis_url,
            "--host 10.0.0.4 --port 29510": f"--host 127.0.0.1 --port {free_port()}",
            **{f"{host}:8000": self.http for host in ("localhost", "127.0.0.1")},
            **{f"{host}:8001": self.grpc for host in ("localhost", "127.0.0.1", "gpu0", "teacher")},
        }
        if "https://" in text:
            own["localhost:8000"] = self.http.replace("127.0.0.1", "localhost")
        for shown, here in (SMALLER | own).items():
            text = text.replace(shown, here)
        for shown, here in self.reader.names.items():
            text = re.sub(rf"(?<![\w/.-]){re.escape(shown)}(?![\w/.-])", here, text)
        return text

    def _environment(self) -> dict[str, str]:
        path = f"{self.folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **self.reader.environment, "PATH": path, "HOME": str(self.folder)}

    def _start(self, text: str) -> None:
        """Start a service, wait until it answers, and leave it to the commands that follow."""
        self._started += 1
        name = f"service-{self._started}"
        ready = self.folder / f"{name}.json"
        own = {"TEACHER_READY_FILE": str(ready), "TEACHER_GRPC_PORT": "0", "TEACHER_HTTP_PORT": "0"}
        log = self.folder / f"{name}.log"
        argv = ["bash", "-c", f"cd {shlex.quote(str(self.folder))} && exec {text}"]
        child = self._services.enter_context(Child(name, argv, log, {**self._environment(), **own}))
        port = re.search(r"--port (\d+)", text)
        deadline = time.monotonic() + SECONDS
        while not (_listens(int(port[1])) if port else ready.exists()):
            assert child.poll() is None, child.tail()
            assert time.monotonic() < deadline, child.tail()
            time.sleep(0.05)
        if not port:
            addresses = json.loads(ready.read_text(encoding="utf-8"))
            self.grpc, self.http = addresses["grpc"], addresses["http"].partition("://")[2]
            # The files of the page name the teacher that it has started.
            self.save_files()

    def _interrupt(self, text: str) -> None:
        """Send Ctrl-C once a step has been done; it must end as the pages promise."""
        log = self.folder / "interrupted.log"
        process = OwnProcess(self._argv(text), log, self._environment(), self.folder)
        wait_until(
            lambda: (
                process.poll() is not None
                or any('"event": "step"' in path.read_text() for path in self.folder.glob("runs/*/metrics.jsonl"))
            ),
            SECONDS,
            "a step",
        )
        assert process.poll() is None, process.tail()
        process.signal(signal.SIGINT)
        assert process.ended(SECONDS) == 143, process.tail()


def _finds_only_this_machine_wanting(printed: str) -> bool:
    """Say whether all that the doctor found is about the machine that the tests run on, and nothing that they made."""
    found = re.findall(r"^PROBLEM ([\w ]+):", printed, re.MULTILINE)
    return bool(found) and set(found) <= {"GPU", "memory", "disk", "open files", "ports"}


def needs(command: Command) -> None:
    """Skip, and say so, where a command's program is not on this machine."""
    for program in ("curl", "openssl"):
        if re.search(rf"^{program} ", command.text, re.MULTILINE) and shutil.which(program) is None:
            pytest.skip(f"NOT TESTED: {program} is not installed")


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
