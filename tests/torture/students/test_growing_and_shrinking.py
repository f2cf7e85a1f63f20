"""Workers come to a run and leave it while it trains: nobody is started again, and every sample counts once."""

from __future__ import annotations

import signal
from itertools import groupby
from pathlib import Path

import pytest

from tests.torture.students.plans import chosen
from tests.torture.students.proof import Proof, assert_same, prove
from tests.torture.students.runs import Run
from tests.torture.students.scene import STEPS, Scene
from tests.torture.students.services import LighthouseProcess

GROW, SHRINK = "between-steps@6", "between-steps@14"


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("survivor", "at_the_end"), chosen([(2, ",mid-export@0=kill"), (0, ""), (2, "")]))
def test_one_worker_becomes_three_and_one_again(
    survivor: int, at_the_end: str, scene: Scene, undisturbed: Proof, lighthouse: LighthouseProcess, tmp_path: Path
) -> None:
    """The survivor has written all along, or never before; or it is killed before all is written, and comes back."""
    points = f"{GROW}=hold,{SHRINK}=hold{at_the_end}"
    with Run(scene, tmp_path / "run", lighthouse=lighthouse.address, points=points) as run:
        run.start(0)
        run.until(lambda: run.struck_at(GROW) is not None, "the first six steps")
        for index in (1, 2):
            run.start(index)
        run.until(lambda: all(run.is_ready(index) for index in range(3)), "the newcomers")
        pids = {name: place.pid for name, place in run.places.items()}
        run.let_go(GROW)
        run.until(lambda: run.struck_at(SHRINK) is not None, "the steps of three")
        assert {name: place.pid for name, place in run.places.items()} == pids
        run.signal(signal.SIGTERM, *({0, 1, 2} - {survivor}))
        run.let_go(SHRINK)
        codes = run.end()
        assert codes == {f"worker-{index}": 0 if index == survivor else 143 for index in range(3)}, run.told()
        starts = {name: place.starts for name, place in run.places.items()}
        assert starts == dict.fromkeys(starts, 1) | ({f"worker-{survivor}": 2} if at_the_end else {})
        worlds = [size for size, _ in groupby(record["world_size"] for record in run.records())]
        assert (worlds[0], max(worlds), worlds[-1]) == (1, 3, 1)
        assert [record["world_size"] for record in run.records()][:6] == [1] * 6
        assert_same(prove(run, STEPS), undisturbed)
