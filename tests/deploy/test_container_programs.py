"""The three small programs inside the images: keys that are made once, a command supervised, and a look at health."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.torture.service_process import free_port

PROGRAMS = Path(__file__).parents[2] / "deploy" / "docker"
SECONDS = 20.0


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(PROGRAMS / program), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)


@contextmanager
def started(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, str(PROGRAMS / program), *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def get(port: int, path: str) -> tuple[int, str]:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_keys_are_made_once_and_a_scraper_alone_may_read_its_own(tmp_path: Path) -> None:
    assert run("make_keys.py", str(tmp_path)).stdout.startswith("made run-token, ")
    before = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert before.keys() == {"run-token", "teacher-token", "person-token", "scrape-token", "tokens"}
    assert run("make_keys.py", str(tmp_path)).stdout == "all keys are there\n"
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == before
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes.pop("scrape-token") == 0o444
    assert set(modes.values()) == {0o400}


def test_the_teacher_takes_the_keys_and_knows_who_has_them(tmp_path: Path) -> None:
    from teacher_service.token_sources import parse_tokens, read_tokens_file

    run("make_keys.py", str(tmp_path))
    lines = (tmp_path / "tokens").read_text(encoding="utf-8").splitlines()
    assert [(line.split()[0], line.split()[2]) for line in lines] == [
        ("workers", "teacher"),
        ("person", "teacher"),
        ("prometheus", "metrics"),
    ]
    assert lines[0].split()[1] == (tmp_path / "teacher-token").read_text(encoding="utf-8").strip()
    assert len(parse_tokens(read_tokens_file(tmp_path / "tokens"), "tokens")) == 3


def test_keys_that_were_there_are_left_and_taken_up(tmp_path: Path) -> None:
    (tmp_path / "person-token").write_text("a-token-of-my-own-choice\n", encoding="utf-8")
    run("make_keys.py", str(tmp_path))
    assert "person a-token-of-my-own-choice teacher" in (tmp_path / "tokens").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    done = run("make_keys.py", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert re.search(r"error: the keys cannot be written to .*nowhere: ", done.stderr)


def test_secrets_in_files_become_variables_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("the secret\n", encoding="utf-8")
    shows = "import os; print(os.environ['A'] + '|' + os.environ['HOME'])"
    done = run("supervise.py", f"A={tmp_path / 'a'}", "--", sys.executable, "-c", shows)
    assert done.stdout == f"the secret|{os.environ['HOME']}\n"
    assert "the secret" not in done.stderr
    done = run("supervise.py", f"A={tmp_path / 'b'}", "--", sys.executable, "-c", shows)
    assert done.returncode == 2
    assert str(tmp_path / "b") in done.stderr


@pytest.mark.parametrize("code", [0, 1, 2, 3, 137, 143])
def test_without_hold_the_commands_code_is_the_containers(code: int) -> None:
    assert run("supervise.py", "--", "/bin/sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("code", [0, 1, 143])
def test_what_may_be_started_again_is_not_held(code: int) -> None:
    assert run("supervise.py", "--hold=1", "--", "/bin/sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize(("code", "said"), [(2, "its configuration or input is wrong"), (3, "a guard stopped the run")])
def test_what_must_never_be_started_again_is_held_ill_until_it_is_stopped(code: int, said: str) -> None:
    port = free_port()
    with started("supervise.py", f"--hold={port}", "--", "/bin/sh", "-c", f"exit {code}") as process:
        status, body = get(port, "/livez")
        assert (status, body) == (503, f"ended with {code}: {said}\n")
        assert run("healthcheck.py", f"http://127.0.0.1:{port}/livez").returncode == 1
        assert f"\nstillhouse_ended_code {code}\n" in get(port, "/metrics")[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == code
        assert process.stderr is not None
        assert said in process.stderr.read()


def test_a_signal_is_passed_on_and_what_it_ends_is_not_held() -> None:
    traps = "trap 'echo stopping; exit 2' TERM; echo ready; while :; do sleep 0.05; done"
    with started("supervise.py", f"--hold={free_port()}", "--", "/bin/sh", "-c", traps) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping\n"
        assert process.wait(SECONDS) == 2


def test_a_command_that_is_killed_says_so_as_a_shell_would() -> None:
    assert run("supervise.py", "--", "/bin/sh", "-c", "kill -9 $$").returncode == 137


def test_any_address_that_answers_is_health_enough() -> None:
    closed = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        opened = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        assert run("healthcheck.py", opened).returncode == 0
        assert run("healthcheck.py", f"http://127.0.0.1:{closed}/livez", opened).returncode == 0
        assert run("healthcheck.py", f"tcp://127.0.0.1:{closed}").returncode == 1
