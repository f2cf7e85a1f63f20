"""`python -m teacher_service` as a process of its own: how it starts, how it ends, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stillhouse.client import TeacherClient

START_SECONDS = 60.0


class Process:
    """A teacher process with free ports and its own log."""

    def __init__(self, folder: Path, *flags: str, **environment: str) -> None:
        self.ready_file = folder / "ready.json"
        clean = {name: value for name, value in os.environ.items() if not name.upper().startswith("TEACHER_")}
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "teacher_service", "--ready-file", str(self.ready_file), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean, "OMP_NUM_THREADS": "1", **environment},
        )

    def wait_until_ready(self) -> dict[str, Any]:
        wait_until(lambda: self.ready_file.exists() or self._popen.poll() is not None)
        assert self.ready_file.exists(), self.end()
        found: dict[str, Any] = json.loads(self.ready_file.read_text())
        return found

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the status and what was written to stderr."""
        _, errors = self._popen.communicate(timeout=START_SECONDS)
        return self._popen.returncode, errors

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self._popen.pid).children(recursive=True)

    def kill(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.communicate()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def start_one(*flags: str, **environment: str) -> Process:
        started.append(Process(tmp_path, *flags, **environment))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()


FREE = ("--backend", "fixture", "--http-port", "0", "--grpc-port", "0")


def test_it_serves_until_sigterm_and_leaves_nothing(start: Start) -> None:
    process = start(*FREE)
    ready = process.wait_until_ready()
    with TeacherClient(ready["grpc"]) as client:
        assert client.logits([[1, 2]])[0].num_positions == 2
    children = process.children()
    assert [child.name() for child in children] == ["valkey-server"]
    process.signal(signal.SIGTERM)
    status, log = process.end()
    assert status == 0
    assert not any(child.is_running() for child in children)
    assert not process.ready_file.exists()
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events == ["listening", "loading", "ready", "draining", "stopped"]


def test_ctrl_c_is_an_orderly_end_too(start: Start) -> None:
    process = start(*FREE, "--cache", "off")
    process.wait_until_ready()
    process.signal(signal.SIGINT)
    assert process.end()[0] == 0


def test_kill_9_leaves_no_valkey(start: Start) -> None:
    process = start(*FREE)
    process.wait_until_ready()
    (valkey,) = process.children()
    process.signal(signal.SIGKILL)
    process.end()
    wait_until(lambda: not valkey.is_running() or valkey.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("setting", ["http-port", "grpc-port"])
def test_a_port_in_use_is_one_line_and_exit_2(start: Start, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(*FREE, "--cache", "off", f"--{setting}", str(port))
        status, log = process.end()
    assert status == 2
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert f"127.0.0.1:{port}" in line
    assert f"--{setting}" in line
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("--backend", "transformers", "--model", "/no/such/model"), {}, "model '/no/such/model' does not exist"),
        (("--modle", "smollm2"), {}, "No such option: --modle"),
        ((), {"TEACHER_MODLE": "smollm2"}, "TEACHER_MODLE is no setting of the teacher: did you mean TEACHER_MODEL?"),
        ((), {"TEACHER_REDIS_URL": "http://user:secret@host"}, "TEACHER_REDIS_URL"),
        (("--host", "203.0.113.1"), {}, "cannot listen on 203.0.113.1:0"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_2(
    start: Start, flags: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    status, log = start(*FREE, "--cache", "on", *flags, **environment).end()
    assert status == 2
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in log
    assert "secret" not in log
