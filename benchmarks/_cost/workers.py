"""Curves over workers: the bytes and the time of the exact sum, and a student's whole step, on this host."""

from __future__ import annotations

import os
from collections.abc import Iterator

from benchmarks._cost.model import Machine, step_seconds, sum_seconds
from benchmarks._cost.point import Point
from benchmarks._cost.worker import SHARDS
from benchmarks._workers import run_workers
from student_worker.elastic.sum_costs import sum_traffic_bytes

WORLDS = (1, 2, 3, 4)
ELEMENTS = 8 * 2**20
"""Whole pieces of the exchange, so that nothing is sent that only fills one up."""


def worker_points(machine: Machine, quick: bool) -> Iterator[Point]:
    """Return the curves; a world of one gives what computing takes, the plain all-reduce of two what sending does."""
    worlds, rounds, elements = (WORLDS[:2], 1, 100_000) if quick else (WORLDS, 5, ELEMENTS)
    size = (1000, 64, 1) if quick else (8000, 256, 4)
    told = {world: run_workers("benchmarks._cost.worker", world, rounds, elements, *size) for world in worlds}
    cores = os.cpu_count() or 1
    alone, two = told[1]["seconds"], told[2]["seconds"]
    bytes_s = sum_traffic_bytes("fast", SHARDS, elements, 2) / two["all-reduce"]
    for world, answer in told.items():
        parameters, seconds = answer["parameters"], answer["seconds"]
        step_bytes = sum_traffic_bytes("exact", SHARDS, parameters, world)
        predicted = step_seconds(
            world,
            shards=SHARDS,
            cores=cores,
            shard_seconds=alone["compute"] / SHARDS,
            update_seconds=alone["update"],
            sum_seconds=sum_seconds(machine, parameters, step_bytes, world, cores=cores, bytes_s=bytes_s),
        )
        yield Point("step", "W", world, 1e3 * seconds["step"], 1e3 * predicted, "ms", "apart")
        if world == 1:
            continue
        traffic = sum_traffic_bytes("exact", SHARDS, elements, world)
        yield Point("sum, bytes", "W", world, answer["sent_bytes"], traffic, "bytes", "formula")
        measured = seconds["add and total"] - seconds["add"]
        predicted = sum_seconds(machine, elements, traffic, world, cores=cores, bytes_s=bytes_s)
        yield Point("sum", "W", world, 1e3 * measured, 1e3 * predicted, "ms", "apart")
