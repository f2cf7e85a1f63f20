"""A Compose project of a test's own on a real Docker engine, and the ways in which its parts are struck."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
FILES = ("docker-compose.yml", "deploy/compose/cpu.yml")

BUILD_SECONDS = 1800.0
COMMAND_SECONDS = 300.0
POLL_SECONDS = 0.25

# What CI may name where it can reach no registry, as for `docker compose` itself: see .env.example.
PASSED_ON = ("BASE", "BUILD_BASE", "TORCH_INDEX_URL", "REDIS_IMAGE", "DOCKER_HOST", "PATH", "HOME")

NO_REGISTRY = ("pull access denied", "dial tcp", "no such host", "failed to resolve", "i/o timeout", "TLS handshake")


def command() -> list[str]:
    """Return Compose's command, STILLHOUSE_TEST_COMPOSE where it is set; skip loudly where no engine answers."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("NOT TESTED: no Docker engine answers here")
    if named := os.environ.get("STILLHOUSE_TEST_COMPOSE"):
        return named.split()
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    pytest.skip("NOT TESTED: Docker is here, and Compose is not")


class Project:
    """The services of one project, with volumes of its own.

    Args:
        name: of the project.
        environment: the knobs of .env.example.
        runs: what RUNS_DIR names, seen from here.
    """

    def __init__(self, name: str, environment: dict[str, str], runs: Path) -> None:
        passed = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        self._environment = {**passed, **environment, "COMPOSE_PROJECT_NAME": name}
        files = [part for file in FILES for part in ("--file", str(ROOT / file))]
        self._argv = [*command(), "--project-directory", str(ROOT), *files]
        self._name = name
        self.run_folder = runs / "first"

    def compose(self, *arguments: str, seconds: float = COMMAND_SECONDS, check: bool = True) -> str:
        done = subprocess.run(
            [*self._argv, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout + done.stderr

    def build(self) -> None:
        """Build the images; skip loudly where what they are built on cannot be fetched."""
        told = self.compose("build", "teacher-service", "student-worker", seconds=BUILD_SECONDS, check=False)
        done = subprocess.run(
            ["docker", "images", "--quiet", "stillhouse-student-cpu"], capture_output=True, check=False
        )
        if any(sign in told for sign in NO_REGISTRY):
            pytest.skip(f"NOT TESTED: the images cannot be built, no registry is reached: {told[-300:]}")
        assert "Successfully" in told or done.stdout.strip(), told[-3000:]

    def up(self, workers: int) -> None:
        self.compose("up", "--detach", "--scale", f"student-worker={workers}")

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "5", check=False)

    def logs(self) -> str:
        done = subprocess.run(
            [*self._argv, "logs", "--tail", "15"], env=self._environment, capture_output=True, text=True, check=False
        )
        return done.stdout[-8000:]

    def containers(self, service: str) -> list[dict[str, Any]]:
        """Return what the engine knows of a service's containers, those that have ended included."""
        filters = [f"label=com.docker.compose.project={self._name}", f"label=com.docker.compose.service={service}"]
        argv = ["docker", "ps", "--all", "--quiet", *(part for one in filters for part in ("--filter", one))]
        found = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
        if not found:
            return []
        told = subprocess.run(["docker", "inspect", *found], capture_output=True, text=True, check=False).stdout
        return list(json.loads(told))

    def running(self, service: str) -> list[str]:
        return [one["Id"] for one in self.containers(service) if one["State"]["Status"] == "running"]

    def crash(self, service: str) -> None:
        """End the processes of a service's first container from within: its process 1 ends with them."""
        container = self.running(service)[0]
        subprocess.run(["docker", "exec", container, "sh", "-c", "kill -9 -1"], capture_output=True, check=False)

    def kill(self, service: str) -> None:
        """`docker kill` its first container: a person's wish, which no restart policy overrules."""
        subprocess.run(["docker", "kill", self.running(service)[0]], capture_output=True, check=True)

    def records(self, event: str = "step") -> list[dict[str, Any]]:
        file = self.run_folder / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # being written
        return [one for one in found if one["event"] == event]

    def step(self) -> int:
        return max((int(one["step"]) for one in self.records()), default=0)

    def world_size(self) -> int:
        records = self.records()
        return int(records[-1]["world_size"]) if records else 0

    def wait(self, what: str, holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{self.logs()}"
            time.sleep(POLL_SECONDS)

    def wait_for_steps(self, more: int, seconds: float) -> None:
        goal = self.step() + more
        self.wait(f"step {goal}", lambda: self.step() >= goal or self.is_over(), seconds)

    def is_over(self) -> bool:
        return (self.run_folder / "result.json").exists()

    def exit_codes(self, service: str) -> Sequence[int]:
        return [one["State"]["ExitCode"] for one in self.containers(service) if one["State"]["Status"] == "exited"]
