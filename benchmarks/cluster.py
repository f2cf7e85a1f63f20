"""What would 8 teachers and 256 students do, and where would such a cluster break first?

A simulation, event by event, since no such cluster is at hand. First it is checked: against laws that hold for any
system, and against the real service with a model that sleeps. Then come the scenarios of `_cluster.scenarios`: what
each gives, how busy each part is, which is the first at its limit; and what one change after the other would gain.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from benchmarks._cluster.bounds import chain_seconds, least_step_seconds
from benchmarks._cluster.checks import law_points, service_points
from benchmarks._cluster.parts import Cluster
from benchmarks._cluster.scenarios import changes, grid
from benchmarks._cluster.simulation import Outcome, simulate_training
from benchmarks._result import Result, Value

STEPS, WARM_UP = 5, 3
MIXED_STEPS, MIXED_WARM_UP = 10, 6
"""Where some is remembered: until as many of the rest wait as ever will, what is remembered runs ahead."""
LAW_TOLERANCE = 1.1
"""A window has an end in the middle of things; over a dozen steps that is some percent at most."""

IN_VAIN = 1.5
"""Teachers that compute so many times what is not remembered do it because Redis is left alone."""

IDLE, REFUSED = 0.8, 0.05
"""No part is at its limit below the one, and above the other refusals are no accident."""


def measure(quick: bool) -> Result:
    """Check the simulation, then simulate.

    `simulated_over_measured_requests_s` is the middle of the numbers of callers, the real service being measured;
    `laws_worst_ratio` how far the simulation is from what must be. `base_tokens_s` is what 8 teachers and 256 students
    make of new text by `sampled:50`, `remembered_tokens_s` the same of text that Redis knows, and `students_busy` and
    `students_busy_remembered` how many of the students that comes to, had they nothing to wait for.
    """
    laws = list(law_points(quick=quick))
    real, simulated_over_measured = service_points(quick=quick)
    worst = max(point.ratio for point in laws)
    table: list[dict[str, Value]] = [point.row() for point in (*laws, *real)]
    assert worst < LAW_TOLERANCE, [point.row() for point in laws if point.ratio >= LAW_TOLERANCE]
    scenarios = list(map(_small, grid(quick=True)) if quick else grid())
    told = list(changes())
    changed = [_small(change.cluster) if quick else change.cluster for change in told]
    # Each is the work of one thread.
    with ProcessPoolExecutor(mp_context=get_context("forkserver")) as pool:
        of_scenarios, of_changes = (list(pool.map(_simulate, some)) for some in (scenarios, changed))
    table += [_row("scenario", *each) for each in zip(scenarios, of_scenarios, strict=True)]
    outcomes: dict[str, tuple[Cluster, Outcome]] = {}
    for change, one, outcome in zip(told, changed, of_changes, strict=True):
        outcomes[change.name] = one, outcome
        table.append({**_row("change", one, outcome), "what": change.what})
    (new, of_new), (remembered, of_remembered) = outcomes["new"], outcomes["remembered"]
    figures = {
        "simulated_over_measured_requests_s": simulated_over_measured,
        "laws_worst_ratio": worst,
        "base_tokens_s": of_new.tokens_s,
        "students_busy": _students_busy(new, of_new),
        "remembered_tokens_s": of_remembered.tokens_s,
        "students_busy_remembered": _students_busy(remembered, of_remembered),
    }
    return Result("cluster", 1, table, figures)


def _small(one: Cluster) -> Cluster:
    """Return a part of a cluster: what comes of it is no figure."""
    return replace(one, students=16, micro_shards=32)


def _simulate(one: Cluster) -> Outcome:
    steps, warm_up = (MIXED_STEPS, MIXED_WARM_UP) if 0 < one.hits < 1 else (STEPS, WARM_UP)
    return simulate_training(one, steps=steps, warm_up=warm_up)


def _students_busy(one: Cluster, outcome: Outcome) -> float:
    """Return how many students would do as much, had they nothing to wait for."""
    return one.students * chain_seconds(one) * outcome.tokens_s / one.step_tokens


def _row(curve: str, one: Cluster, outcome: Outcome) -> dict[str, Value]:
    bound = one.step_tokens / least_step_seconds(one)
    return {
        "curve": curve,
        "x_name": "students",
        "x": one.students,
        "measured": float(f"{outcome.tokens_s:.4g}"),
        "predicted": float(f"{bound:.4g}"),
        "unit": "tokens/s",
        "measured_over_predicted": round(outcome.tokens_s / bound, 3),
        "encoding": one.form.name,
        "remembered": one.cache_ratio,
        "teachers": one.teachers,
        "students_busy": round(_students_busy(one, outcome), 1),
        "breaks_first": first_limit(one, outcome),
        "refused": round(outcome.refused / outcome.calls, 3),
        "late_in_redis": outcome.late,
        **{f"busy_{name}": round(part, 3) for name, part in outcome.utilisation.items()},
    }


def first_limit(one: Cluster, outcome: Outcome) -> str:
    """Return which part is at its limit: whose work takes the largest part of the time.

    A student computes and then sums, one after the other, so that both together are one part. Where Redis is left
    alone since it answered too late, that is what broke, whatever is busy instead; and where nothing is busy but calls
    are refused, the bounds of the teachers' queues, since who is refused waits although there would be time.
    """
    expected = (1 - one.hits) * one.step_tokens / one.sequence_tokens * outcome.steps
    if outcome.late and outcome.computed > IN_VAIN * max(expected, 1):
        return "patience_with_redis"
    busy = dict(outcome.utilisation)
    compute, network = busy.pop("student_compute"), busy.pop("student_network")
    busy["student_compute" if compute > network else "student_sum"] = compute + network
    busiest = max(busy, key=lambda name: busy[name])
    if busy[busiest] < IDLE and outcome.refused > REFUSED * outcome.calls:
        return "queue_bounds"
    return busiest
