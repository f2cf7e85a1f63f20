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
from typing import Any

import pytest

from student_worker.elastic.lighthouse import Lighthouse
from tests import forked

WORKER = str(Path(__file__).with_name("elastic_worker.py"))
STEPS = 40
WAIT_SECONDS = 120.0


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
        self.processes: list[forked.Popen | subprocess.Popen[str]] = []

    def start(self, worker_id: str, *flags: str, steps: int = STEPS) -> forked.Popen:
        arguments = [str(self.output), str(steps), "--lighthouse", self.lighthouse, "--worker-id", worker_id, *flags]
        process = forked.Popen(
            [sys.executable, WORKER, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "RUST_LOG": "warn"},
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process

    def steps(self, worker_id: str) -> list[dict[str, Any]]:
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
    forked.run([sys.executable, WORKER, str(output), str(STEPS)], check=True, timeout=WAIT_SECONDS)
    return str(json.loads((output / "final-worker-0.json").read_text())["weights"])


def test_one_two_and_three_workers_end_with_the_same_bits(workers: Workers, undisturbed: str) -> None:
    names = [f"worker-{index}" for index in range(3)]
    processes = [workers.start(name, "--pause", "0.1", "--company", "3") for name in names]
    assert [process.wait(WAIT_SECONDS) for process in processes] == [0, 0, 0]
    assert {workers.weights(name) for name in names} == {undisturbed}
    assert max(entry["world"] for entry in workers.steps("worker-0")) == 3


def test_a_killed_worker_heals_when_it_is_started_again_and_the_bits_are_the_same(
    workers: Workers, undisturbed: str
) -> None:
    together = ("--pause", "0.1", "--company", "2")
    survivor = workers.start("worker-0", *together, "--gate", "30", "--company-at-gate", "3")
    victim = workers.start("worker-1", *together)
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


ENDLESS = 1_000_000


def assert_each_step_once(workers: Workers, worker_id: str) -> None:
    """From the first step with company on: before it, each may have begun alone, and the one behind has healed."""
    entries = workers.steps(worker_id)
    most = max(entry["world"] for entry in entries)
    first = next(index for index, entry in enumerate(entries) if entry["world"] == most)
    steps = [entry["step"] for entry in entries[first:]]
    assert steps == list(range(steps[0], steps[0] + len(steps)))


@pytest.mark.long
def test_strangers_and_one_too_many_leave_with_exit_2_and_the_run_goes_on(workers: Workers) -> None:
    worker = workers.start("worker-1", "--pause", "0.1", "--shards", "1", steps=ENDLESS)
    wait_until(lambda: len(workers.steps("worker-1")) > 2, "some steps")
    # Their names sort first, so they are rank 0 of the quorum: rank alone must not make them right.
    refusals = {
        "recipe is run there and another here": ("--run-id", "another"),
        "this worker's token is not the run's": ("--token", "another"),
        "1 workers already, as many as micro_shards": ("--shards", "1"),
    }
    refused = {words: workers.start("worker-0", *flags, steps=ENDLESS) for words, flags in refusals.items()}
    for words, stranger in refused.items():
        _, errors = stranger.communicate(timeout=WAIT_SECONDS)
        assert stranger.returncode == 2, errors
        assert words in errors
    since = len(workers.steps("worker-1"))
    wait_until(lambda: len(workers.steps("worker-1")) > since + 2, "further steps")
    worker.terminate()
    assert worker.wait(WAIT_SECONDS) == 143
    assert_each_step_once(workers, "worker-1")


def test_a_worker_that_is_told_to_stop_finishes_its_step_and_the_others_lose_none(workers: Workers) -> None:
    leaver = workers.start("worker-0", "--pause", "0.1", steps=ENDLESS)
    stayer = workers.start("worker-1", "--pause", "0.1", steps=ENDLESS)
    wait_until(lambda: any(entry["world"] == 2 for entry in workers.steps("worker-1")), "a step of two workers")
    leaver.terminate()
    assert leaver.wait(WAIT_SECONDS) == 143
    wait_until(
        lambda: any(entry["world"] == 1 for entry in workers.steps("worker-1")[-1:]), "a step of the other alone"
    )
    stayer.terminate()
    assert stayer.communicate(timeout=WAIT_SECONDS)[1] == ""  # no step was done again
    left, stayed = workers.steps("worker-0"), {entry["step"]: entry for entry in workers.steps("worker-1")}
    assert_each_step_once(workers, "worker-1")
    assert stayed[left[-1]["step"]]["world"] == 2
    assert stayed[left[-1]["step"] + 1]["world"] == 1


@pytest.mark.long
def test_a_frozen_peer_is_dropped_and_heals_when_it_wakes(workers: Workers, undisturbed: str) -> None:
    flags = ("--pause", "0.1", "--timeout", "2", "--company", "2")
    stayer, sleeper = (workers.start(name, *flags) for name in ("worker-0", "worker-1"))
    wait_until(lambda: any(entry["world"] == 2 for entry in workers.steps("worker-0")), "a step of two workers")
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: workers.steps("worker-0")[-1]["world"] == 1, "a step of the other alone")
    asleep = workers.steps("worker-0")[-1]["step"]
    sleeper.send_signal(signal.SIGCONT)
    wait_until(lambda: any(entry["step"] > asleep for entry in workers.steps("worker-1")), "the sleeper's next step")
    assert workers.steps("worker-0")[-1]["step"] < STEPS
    assert [process.wait(WAIT_SECONDS) for process in (stayer, sleeper)] == [0, 0]
    assert {workers.weights("worker-0"), workers.weights("worker-1")} == {undisturbed}


@pytest.mark.long
def test_a_lighthouse_that_was_killed_and_is_back_at_its_port_lets_the_run_go_on(
    tmp_path: Path, undisturbed: str
) -> None:
    def start_lighthouse(port: str) -> tuple[subprocess.Popen[str], str]:
        argv = [sys.executable, "-m", "student_worker", "lighthouse", "--port", port]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().split()[-1]

    first, address = start_lighthouse("0")
    workers = Workers(tmp_path, address)
    workers.processes.append(first)
    try:
        together = ("--pause", "0.1", "--company", "2")
        processes = [workers.start(name, *together) for name in ("worker-0", "worker-1")]
        wait_until(lambda: any(entry["world"] == 2 for entry in workers.steps("worker-0")), "a step of two workers")
        first.kill()
        first.wait()
        time.sleep(3.0)  # longer than a heartbeat's timeout, and than a step
        stalled = workers.steps("worker-0")[-1]["step"]
        assert stalled < STEPS
        second, again = start_lighthouse(address.rpartition(":")[2])
        workers.processes.append(second)
        assert again == address
        assert [process.wait(WAIT_SECONDS) for process in processes] == [0, 0]
        assert {workers.weights("worker-0"), workers.weights("worker-1")} == {undisturbed}
        # Who finds the new one first may do a step or two alone, and the other heals: between them none is missing.
        made = [[entry["step"] for entry in workers.steps(name)] for name in ("worker-0", "worker-1")]
        assert all(steps == sorted(set(steps)) for steps in made)
        assert set().union(*made) == set(range(1, STEPS + 1))
    finally:
        workers.end()


@pytest.mark.long
def test_a_worker_that_is_told_to_stop_while_the_lighthouse_is_away_ends_soon(tmp_path: Path) -> None:
    with Lighthouse() as lighthouse:
        workers = Workers(tmp_path, lighthouse.address)
        worker = workers.start("worker-0", "--pause", "0.1", steps=ENDLESS)
        wait_until(lambda: len(workers.steps("worker-0")) > 2, "some steps")
    time.sleep(1.0)
    worker.terminate()
    assert worker.wait(WAIT_SECONDS) == 143
    workers.end()


@pytest.mark.long
def test_restarted_workers_behind_a_live_one_do_the_same_work_again_until_they_meet(
    workers: Workers, undisturbed: str
) -> None:
    ahead = workers.start("worker-0", "--pause", "0.1")
    wait_until(lambda: len(workers.steps("worker-0")) > 8, "a checkpoint, and steps after it")
    ahead.send_signal(signal.SIGSTOP)
    reached = workers.steps("worker-0")[-1]["step"]
    restarted = workers.start("worker-1", "--pause", "0.1")
    wait_until(lambda: bool(workers.steps("worker-1")), "a step from the checkpoint")
    assert workers.steps("worker-1")[0]["step"] <= reached
    ahead.send_signal(signal.SIGCONT)
    assert [process.wait(WAIT_SECONDS) for process in (ahead, restarted)] == [0, 0]
    assert {workers.weights("worker-0"), workers.weights("worker-1")} == {undisturbed}
    losses = [{entry["step"]: entry["loss"] for entry in workers.steps(name)} for name in ("worker-0", "worker-1")]
    assert all(losses[0][step] == losses[1][step] for step in losses[0].keys() & losses[1].keys())
