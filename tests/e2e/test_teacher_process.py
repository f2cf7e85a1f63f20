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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from stillhouse.client import TeacherClient
from stillhouse.errors import TeacherError, TeacherUnavailableError

START_SECONDS = 60.0

FREE_IN_ENVIRONMENT = {
    "TEACHER_BACKEND": "fixture",
    "TEACHER_HTTP_PORT": "0",
    "TEACHER_GRPC_PORT": "0",
    "TEACHER_CACHE": "off",
}


class Process:
    """A teacher process with free ports and its own log."""

    def __init__(self, folder: Path, *flags: str, code: str = "", **environment: str) -> None:
        """Start it; with `code`, that program instead, its settings in the environment."""
        self.ready_file = folder / "ready.json"
        self._log_path = folder / "log"
        clean = {name: value for name, value in os.environ.items() if not name.upper().startswith("TEACHER_")}
        usual = ["-m", "teacher_service", "--ready-file", str(self.ready_file), *flags]
        if code:
            environment = {"TEACHER_READY_FILE": str(self.ready_file), **FREE_IN_ENVIRONMENT, **environment}
        self._log = self._log_path.open("w")
        self._popen = subprocess.Popen(
            [sys.executable, *(["-c", code] if code else usual)],
            stdout=subprocess.DEVNULL,
            stderr=self._log,
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
        self._popen.wait(timeout=START_SECONDS)
        return self._popen.returncode, self._log_path.read_text()

    def wait_for_log(self, event: str) -> None:
        wait_until(lambda: f'"event": "{event}"' in self._log_path.read_text())

    def wait_for_metric(self, line: str) -> None:
        address = json.loads(self.ready_file.read_text())["http"]
        wait_until(lambda: line in httpx.get(f"{address}/metrics").text)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self._popen.pid).children(recursive=True)

    def kill(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()
        self._log.close()


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
        ((), {"TEACHER_DEVISE": "cpu"}, "TEACHER_DEVISE is no setting of the teacher: did you mean TEACHER_DEVICE?"),
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


HANGING_BACKEND = """
import time
from stillhouse.errors import TeacherInternalError
from teacher_service.backends.fixture import FixtureBackend
from teacher_service import service

class Backend(FixtureBackend):
    def forward(self, sequences):
        if sequences[0].token_ids[0] == 9:
            raise FileNotFoundError("no such file: /srv/models/private/weights.bin")
        time.sleep(float(sequences[0].token_ids[0]))
        return super().forward(sequences)

def opened(settings):
    time.sleep(SECONDS_TO_LOAD)
    return Backend(256)

service.TeacherService.__init__.__defaults__ = (opened,)
from teacher_service.process import run
from teacher_service.settings import load_settings
import sys
sys.exit(run(load_settings(dict(zip(sys.argv[1::2], sys.argv[2::2])))))
"""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """A service whose batches take as many seconds as their first id says, and whose loading takes a while."""
    started: list[Process] = []

    def start_one(seconds_to_load: float = 0.0, **environment: str) -> Process:
        code = HANGING_BACKEND.replace("SECONDS_TO_LOAD", str(seconds_to_load))
        started.append(Process(tmp_path, code=code, **environment))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()


def test_a_signal_while_weights_load_ends_at_once(slow: Callable[..., Process]) -> None:
    process = slow(60.0)
    process.wait_for_log("loading")
    began = time.monotonic()
    process.signal(signal.SIGTERM)
    status, _ = process.end()
    assert status == 0
    assert time.monotonic() - began < 10


def test_the_ready_file_of_a_process_that_was_killed_is_removed(slow: Callable[..., Process], tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text("{}")
    process = slow(60.0)
    process.wait_for_log("loading")
    assert not process.ready_file.exists()


def test_a_host_that_grpc_cannot_read_is_one_line_and_exit_2(start: Start) -> None:
    status, log = start(*FREE, "--cache", "off", "--host", "127.1").end()
    assert status == 2
    assert "error: grpc_port: gRPC cannot listen on 127.1:0" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_work_in_flight(slow: Callable[..., Process], second: signal.Signals) -> None:
    process = slow()
    with TeacherClient(process.wait_until_ready()["grpc"], max_attempts=1) as client, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.logits, [[60]])
        process.wait_for_metric("teacher_queue_size 1.0")
        process.signal(signal.SIGTERM)
        process.wait_for_log("draining")
        process.signal(second)
        assert process.end()[0] == 128 + second
        with pytest.raises(TeacherUnavailableError):
            asked.result()


def test_work_in_flight_is_finished_after_sigterm(slow: Callable[..., Process]) -> None:
    process = slow()
    with TeacherClient(process.wait_until_ready()["grpc"], max_attempts=1) as client, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.logits, [[2]])
        process.wait_for_metric("teacher_queue_size 1.0")
        process.signal(signal.SIGTERM)
        assert asked.result()[0].num_positions == 1
    assert process.end()[0] == 0


def test_when_the_grace_is_over_the_end_is_orderly_all_the_same(slow: Callable[..., Process]) -> None:
    process = slow(TEACHER_GRACE_SECONDS="0.3")
    with TeacherClient(process.wait_until_ready()["grpc"], max_attempts=1) as client, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.logits, [[60]])
        process.wait_for_metric("teacher_queue_size 1.0")
        process.signal(signal.SIGTERM)
        with pytest.raises(TeacherUnavailableError, match="stopped before it could answer"):
            asked.result()
    assert process.end()[0] == 0


def test_neither_an_answer_nor_the_log_shows_a_stack_a_folder_or_a_token(slow: Callable[..., Process]) -> None:
    token, wrong = "right-token-0123456789", "wrong-token-0123456789"
    process = slow(TEACHER_TOKENS=token, TEACHER_REFLECTION="true")
    ready = process.wait_until_ready()
    answers = []
    for given in (token, wrong):
        with TeacherClient(ready["grpc"], token=given, max_attempts=1) as client:
            with pytest.raises(TeacherError) as told:
                client.logits([[9]])
            answers.append(str(told.value))
        headers = {"authorization": f"Bearer {given}"}
        for path, body in (("/v1/logits", '{"sequences": [{"token_ids": [9]}]}'), ("/v1/logits", "{"), ("/%00", "")):
            answers.append(httpx.post(ready["http"] + path, content=body, headers=headers).text)
    process.signal(signal.SIGTERM)
    _, log = process.end()
    assert "FileNotFoundError" in log
    assert "weights.bin" in log
    for text in (log, *answers):
        for hidden in ("Traceback", "/srv/", "site-packages", "/teacher_service/", token, wrong):
            assert hidden not in text
    assert not any("weights.bin" in text for text in answers)
