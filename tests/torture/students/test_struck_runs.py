"""A run that is struck anywhere, again and again, ends with the bits of the one that nobody disturbed."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from tests.torture.students.plans import GATES, PLANS, Part, Plan, Strike, chosen
from tests.torture.students.proof import Proof, assert_same, prove
from tests.torture.students.runs import Run
from tests.torture.students.scene import EVAL_STEPS, SAVE_STEPS, STEPS, Scene
from tests.torture.students.services import LighthouseProcess, Service

PHASES = ("mid-step", "mid-reduce", "mid-heal", "mid-checkpoint", "mid-evaluation")
DOWN_SECONDS = 1.0
"""How long a service stays away: workers have missed it by then."""


def test_the_plans_strike_every_phase_together_with_every_part() -> None:
    struck = Counter((strike.phase, strike.part) for plan in PLANS for strike in plan.strikes)
    assert struck.keys() == set(product(PHASES, get_args(Part)))
    for index, names in enumerate((PHASES, get_args(Part))):
        for name in names:
            assert sum(count for key, count in struck.items() if key[index] == name) >= 2
    assert len(PLANS) == 20
    assert {plan.workers for plan in PLANS} == {1, 2, 3}
    for plan in PLANS:
        assert 1 <= len(plan.strikes) <= 3
        assert plan.workers > 1 or not {"mid-reduce", "mid-heal"} & {strike.phase for strike in plan.strikes}
        for strike in plan.strikes:
            assert strike.worker < plan.workers
            assert strike.step is None or strike.step < STEPS
            assert plan.how == "meeting" or strike.part != "lighthouse"
            every = {"mid-checkpoint": SAVE_STEPS, "mid-evaluation": EVAL_STEPS}.get(strike.phase, 1)
            assert (strike.step or 0) % every == 0


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plan", chosen(PLANS, least=2), ids=str)
def test_a_run_that_was_struck_ends_with_the_same_bits(
    plan: Plan, scene: Scene, undisturbed: Proof, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        lighthouse = LighthouseProcess(tmp_path / "lighthouse")
        stack.callback(lighthouse.stop)
        if plan.how == "meeting":
            lighthouse.start()
        address = lighthouse.address if plan.how == "meeting" else None
        run = stack.enter_context(Run(scene, tmp_path / "run", lighthouse=address, points=plan.points))
        arrange(run, plan, {"teacher": scene.teacher, "valkey": scene.valkey, "lighthouse": lighthouse})
        if plan.how == "launched":
            run.launch(plan.workers)
        else:
            for index in range(plan.workers):
                run.start(index)
        codes = run.end()
        assert set(codes.values()) == {0}, run.told()
        for strike in plan.strikes:
            struck_at = run.struck_at(strike.place)
            assert struck_at is not None, f"{strike} never struck"
            assert struck_at < STEPS, f"{strike} struck too late"
        assert max(record["world_size"] for record in run.records()) == plan.workers
        assert_same(prove(run, STEPS), undisturbed)


def arrange(run: Run, plan: Plan, services: dict[str, Service]) -> None:
    """Say what is to happen when workers have come to a gate or a point that holds them."""

    def all_there(place: str) -> bool:
        return run.struck_at(place) is not None and all(run.is_ready(index) for index in range(plan.workers))

    for gate in (f"between-steps@{step}" for step in GATES):
        run.whenever(partial(all_there, gate), partial(run.let_go, gate))
    for strike in plan.strikes:
        if strike.part != "worker":
            run.whenever(partial(is_due, run, strike, services), partial(kill, run, strike, services))


def is_due(run: Run, strike: Strike, services: dict[str, Service]) -> bool:
    """Tell whether a worker is held in the strike's phase, and what is to be killed is alive: it may have been struck
    a moment ago.
    """
    return run.struck_at(strike.place) is not None and (strike.part == "all" or services[strike.part].is_up)


def kill(run: Run, strike: Strike, services: dict[str, Service]) -> None:
    """Kill what the strike names while a worker is held in its phase; a service comes back a little later."""
    if strike.part == "all":
        run.kill_all()
        run.let_go(strike.place)
        return
    service = services[strike.part]
    service.kill()
    run.let_go(strike.place)
    back = time.monotonic() + DOWN_SECONDS
    run.whenever(lambda: time.monotonic() > back, service.start)
