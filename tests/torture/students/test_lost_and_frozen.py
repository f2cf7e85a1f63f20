"""What is lost altogether comes back, and who freezes is done without until it wakes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.torture.students.plans import chosen
from tests.torture.students.proof import Proof, assert_same, prove
from tests.torture.students.runs import Run
from tests.torture.students.scene import STEPS, Scene
from tests.torture.students.services import LighthouseProcess

START = "between-steps@0"


def begin(run: Run, workers: int) -> None:
    """Start all workers, and let them begin together: the point at the first step holds them until then."""
    for index in range(workers):
        run.start(index)
    run.until(lambda: all(run.is_ready(index) for index in range(workers)), "all workers")
    run.let_go(START)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_everything_is_lost_at_once(
    scene: Scene, undisturbed: Proof, lighthouse: LighthouseProcess, tmp_path: Path
) -> None:
    points = f"{START}=hold,mid-reduce@10/1=hold"
    with Run(scene, tmp_path / "run", lighthouse=lighthouse.address, points=points) as run:
        begin(run, 2)
        run.until(lambda: run.struck_at("mid-reduce@10-1") is not None, "the eleventh step")
        run.kill_all()
        services = (scene.teacher, scene.valkey, lighthouse)
        for service in services:
            service.kill()
        run.let_go("mid-reduce@10-1")
        for service in services[::-1]:
            service.start()
        assert set(run.end().values()) == {0}, run.told()
        assert_same(prove(run, STEPS), undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("frozen", chosen([0, 1]))
def test_a_frozen_worker_is_dropped_and_comes_back(
    frozen: int, scene: Scene, undisturbed: Proof, lighthouse: LighthouseProcess, tmp_path: Path
) -> None:
    """The one that writes, and the other."""
    struck, gate = f"mid-step@6-{frozen}", f"between-steps@12-{1 - frozen}"
    points = f"{START}=hold,mid-step@6/{frozen}=stop,between-steps@12/{1 - frozen}=hold"
    keys = {"step_timeout_seconds": 3, "max_steps": STEPS}
    with Run(scene, tmp_path / "run", lighthouse=lighthouse.address, points=points, **keys) as run:
        begin(run, 2)
        run.until(lambda: run.struck_at(struck) is not None, "the freeze")
        run.until(lambda: run.struck_at(gate) is not None, "six steps of the other alone")
        assert [record["world_size"] for record in run.records()][-6:] == [1] * 6
        run.signal(signal.SIGCONT, frozen)
        run.let_go(gate)
        assert set(run.end().values()) == {0}, run.told()
        assert all(place.starts == 1 for place in run.places.values())
        assert [record["world_size"] for record in run.records()][-1] == 2
        assert_same(prove(run, STEPS), undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "points",
    chosen(
        [
            "after-vote@7/0=kill",
            "before-vote@7/0=kill",
            "after-vote@7/1=kill",
            "after-vote@7/0=kill,after-vote@7/1=kill",
            "before-vote@7/0=freeze:5",
            "mid-export@0=kill",
        ]
    ),
)
def test_a_worker_is_struck_around_the_vote_or_at_the_very_end(
    points: str, scene: Scene, undisturbed: Proof, lighthouse: LighthouseProcess, tmp_path: Path
) -> None:
    with Run(
        scene, tmp_path / "run", lighthouse=lighthouse.address, points=f"{START}=hold,{points}", step_timeout_seconds=3
    ) as run:
        begin(run, 2)
        assert set(run.end().values()) == {0}, run.told()
        assert len(list(run.points.glob("*vote*.struck")) + list(run.points.glob("mid-export*.struck"))) == len(
            points.split(",")
        )
        assert_same(prove(run, STEPS), undisturbed)
