"""Workers that come, die and heal end with the bits of the one that was never disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from student_worker.lighthouse import Lighthouse

WORKER = str(Path(__file__).with_name("elastic_worker.py"))
STEPS = 40
WAIT_SECONDS = 60.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


class Workers:
    """Starts workers, and leaves none behind."""

    def __init__(self, output: Path, lighthouse: str) -> None:
        self.output = output
        self.lighthouse = lighthouse
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, worker_id: str, *flags: str, steps: int = STEPS) -> subprocess.Popen[str]:
        arguments = [str(self.output), str(steps), "--lighthouse", self.lighthouse, "--worker-id", worker_id, *flags]
        process = subprocess.Popen(
            [sys.executable, WORKER, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "RUST_LOG": "warn"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def steps(self, worker_id: str) -> list[dict[str, int]]:
        path = self.output / f"steps-{worker_id}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def weights(self, worker_id: str) -> str:
        return str(json.loads((self.output / f"final-{worker_id}.json").read_text())["weights"])

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with Lighthouse() as lighthouse:
        started = Workers(tmp_path, lighthouse.address)
        yield started
        started.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("solo")
    subprocess.run([sys.executable, WORKER, str(output), str(STEPS)], check=True, timeout=WAIT_SECONDS)
    return str(json.loads((output / "final-worker-0.json").read_text())["weights"])


def test_one_two_and_three_workers_end_with_the_same_bits(workers: Workers, undisturbed: str) -> None:
    names = [f"worker-{index}" for index in range(3)]
    processes = [workers.start(name, "--pause", "0.1") for name in names]
    assert [process.wait(WAIT_SECONDS) for process in processes] == [0, 0, 0]
    assert {workers.weights(name) for name in names} == {undisturbed}
    assert max(entry["world"] for entry in workers.steps("worker-0")) == 3


def test_a_killed_worker_heals_when_it_is_started_again_and_the_bits_are_the_same(
    workers: Workers, undisturbed: str
) -> None:
    survivor = workers.start("worker-0", "--pause", "0.1")
    victim = workers.start("worker-1", "--pause", "0.1")
    wait_until(lambda: any(entry["world"] == 2 for entry in workers.steps("worker-1")), "a step of two workers")
    victim.send_signal(signal.SIGKILL)
    victim.wait(WAIT_SECONDS)
    wait_until(lambda: workers.steps("worker-0")[-1]["world"] == 1, "a step of the survivor alone")
    assert workers.steps("worker-0")[-1]["step"] < STEPS
    again = workers.start("worker-1", "--pause", "0.1")
    assert survivor.wait(WAIT_SECONDS) == 0
    assert again.wait(WAIT_SECONDS) == 0
    assert {workers.weights("worker-0"), workers.weights("worker-1")} == {undisturbed}
    # The survivor may have joined late itself; from then on it has every step, once.
    survived = [entry["step"] for entry in workers.steps("worker-0")]
    assert survived == list(range(survived[0], STEPS + 1))
    assert workers.steps("worker-1")[-1]["step"] == STEPS


def test_strangers_leave_with_exit_2_and_the_run_goes_on(workers: Workers) -> None:
    worker = workers.start("worker-1", "--pause", "0.1", steps=60)
    wait_until(lambda: len(workers.steps("worker-1")) > 2, "some steps")
    # Their names sort first, so they are rank 0 of the quorum: rank alone must not make them right.
    strangers = {flag: workers.start("worker-0", flag, "another") for flag in ("--run-id", "--token")}
    for flag, word in (("--run-id", "recipe"), ("--token", "token")):
        _, errors = strangers[flag].communicate(timeout=WAIT_SECONDS)
        assert strangers[flag].returncode == 2, errors
        assert word in errors
    assert worker.wait(WAIT_SECONDS) == 0
    assert [entry["step"] for entry in workers.steps("worker-1")] == list(range(1, 61))
