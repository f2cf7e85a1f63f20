"""How does the cost of each part grow, and does a model of bytes, FLOPs and memory passes foretell it?

Every point is measured, and beside it stands what `_cost.model` says. Its constants are measured in the same run by
work that is none of Stillhouse's where that can be (a memory pass, exponentials, a matmul, a plain all-reduce, a
request without a model); else they are fitted to points of the curve, which are marked and count for no check. Every
answer, loss, sum and state is compared with what it must be.
"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks._cost.compute import compute_points
from benchmarks._cost.requests import request_points
from benchmarks._cost.workers import worker_points
from benchmarks._result import Result, Value

MOST_BYTES_RATIO = 1.1
"""Bytes are known but for the ids of draws, whose code depends on where they lie."""


def measure(quick: bool) -> Result:
    """Measure all curves, one core or the real service at a time.

    `model_worst_ratio` is how far the worst point is from its prediction, as a factor, of those that it was not fitted
    to; `model_median_ratio` the same of the middle one, and `bytes_worst_ratio` of bytes alone.
    """
    computed, machine = compute_points(quick)
    asked, overheads = request_points(quick)
    points = [*computed, *asked, *worker_points(machine, quick)]
    constants = {**asdict(machine), **asdict(overheads)}
    table: list[dict[str, Value]] = [_constant_row(name, value) for name, value in constants.items()]
    table += [point.row() for point in points]
    checks = sorted(point.ratio for point in points if point.known in ("apart", "point"))
    bytes_ratio = max(point.ratio for point in points if point.known == "formula")
    assert bytes_ratio < MOST_BYTES_RATIO, table
    figures = {
        "model_worst_ratio": checks[-1],
        "model_median_ratio": checks[len(checks) // 2],
        "bytes_worst_ratio": bytes_ratio,
    }
    return Result("cost", 1 if quick else 2, table, figures)


def _constant_row(name: str, value: float) -> dict[str, Value]:
    units = {"bytes_s": "bytes/s", "flop_s": "FLOP/s", "exponentials_s": "1/s"}
    unit = next((unit for end, unit in units.items() if name.endswith(end)), "s")
    return {"curve": "constant", "x_name": name, "measured": float(f"{value:.5g}"), "unit": unit}
