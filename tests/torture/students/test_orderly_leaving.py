"""SIGTERM, whenever it comes: a checkpoint where the run stood, exit code 143, and no step done twice afterwards."""

from __future__ import annotations

import re
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.torture.students.plans import chosen
from tests.torture.students.proof import Proof, assert_same, prove
from tests.torture.students.runs import Run
from tests.torture.students.scene import STEPS, Scene
from tests.torture.students.services import LighthouseProcess


def begin(run: Run, workers: int, *, launched: bool) -> None:
    """Start all workers of a run."""
    if launched:
        run.launch(workers)
    else:
        for index in range(workers):
            run.start(index)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("workers", "launched", "where"),
    chosen(
        [
            (2, False, "mid-checkpoint@8"),
            (1, False, "between-steps@9"),
            (1, False, "mid-evaluation@12"),
            (2, False, "mid-step@9"),
            (2, False, "mid-reduce@9"),
            (2, True, "between-steps@9"),
        ]
    ),
    ids=str,
)
def test_all_are_told_to_leave(
    workers: int, launched: bool, where: str, scene: Scene, undisturbed: Proof, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        address = None
        if workers > 1 and not launched:
            lighthouse = LighthouseProcess(tmp_path / "lighthouse")
            stack.callback(lighthouse.stop)
            lighthouse.start()
            address = lighthouse.address
        points = f"between-steps@0=hold,{where}=hold"
        run = stack.enter_context(Run(scene, tmp_path / "run", lighthouse=address, points=points))
        begin(run, workers, launched=launched)
        run.until(lambda: all(run.is_ready(index) for index in range(workers)), "all workers")
        run.let_go("between-steps@0")
        run.until(lambda: run.struck_at(where) is not None, where)
        run.signal(signal.SIGTERM)
        run.let_go(where)
        assert set(run.end().values()) == {143}, run.told()
        left_at = assert_stands_where_it_left(run)
        begin(run, workers, launched=launched)
        assert set(run.end().values()) == {0}, run.told()
        # One that starts later than the others may find more steps done, or all of them.
        begun = sorted(begun_from(run))
        assert (begun[:workers], begun[workers], len(begun)) == ([0] * workers, left_at, 2 * workers)
        assert_same(prove(run, STEPS), undisturbed)


def begun_from(run: Run) -> list[int]:
    """Return at which step each start of a worker began, in the order of the logs."""
    lines = [line for name in run.places for line in run.log(name).splitlines() if '"event": "training"' in line]
    return [int(number) for line in lines for number in re.findall(r'"from_step": (\d+)', line)]


def assert_stands_where_it_left(run: Run) -> int:
    """See that a run that was interrupted has a checkpoint of its last step, and no export; return that step."""
    steps = [int(record["step"]) for record in run.records()]
    assert steps == list(range(1, len(steps) + 1))
    assert 0 < steps[-1] < STEPS
    assert (run.output / f"checkpoint-{steps[-1]}").is_dir(), run.told()
    assert not (run.output / "export").exists()
    return steps[-1]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_worker_is_told_to_leave_while_it_waits_for_the_teacher(
    scene: Scene, undisturbed: Proof, tmp_path: Path
) -> None:
    with Run(scene, tmp_path / "run", points="between-steps@9=hold", prefetch_steps=0) as run:
        run.start()
        run.until(lambda: run.struck_at("between-steps@9") is not None, "nine steps")
        scene.teacher.kill()
        run.let_go("between-steps@9")
        run.until(lambda: "waiting_for_teacher" in run.log(), "a word about the teacher")
        run.signal(signal.SIGTERM)
        assert run.end() == {"worker-0": 143}, run.told()
        assert assert_stands_where_it_left(run) == 9
        scene.teacher.start()
        run.start()
        assert run.end() == {"worker-0": 0}, run.told()
        assert_same(prove(run, STEPS), undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_workers_are_told_to_leave_while_their_lighthouse_is_away(
    scene: Scene, undisturbed: Proof, lighthouse: LighthouseProcess, tmp_path: Path
) -> None:
    with Run(scene, tmp_path / "run", lighthouse=lighthouse.address, points="between-steps@9=hold") as run:
        run.start()
        run.until(lambda: run.struck_at("between-steps@9") is not None, "nine steps")
        lighthouse.kill()
        run.let_go("between-steps@9")
        run.signal(signal.SIGTERM)
        assert run.end() == {"worker-0": 143}, run.told()
        assert assert_stands_where_it_left(run) == 9
        lighthouse.start()
        run.start()
        assert run.end() == {"worker-0": 0}, run.told()
        assert_same(prove(run, STEPS), undisturbed)
