"""Twenty runs, and where each is struck: every phase of a step together with every part of the system.

A worker that is struck kills itself at its fail-point. For all else the point holds a worker in that phase while the
test kills the part, and lets it go on; so both are struck at the same moment, whatever the machine is doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from student_worker.failpoints import Point
from tests.torture.mix import scaled

_Case = TypeVar("_Case")

Part = Literal["worker", "all", "teacher", "valkey", "lighthouse"]
How = Literal["alone", "meeting", "launched"]
"""A worker without a lighthouse; workers that meet at one of their own; workers of one `--workers N`."""

GATES = (0, 7, 15)
"""After so many steps workers wait until all of the run are there, so that the next strike meets them all.

No checkpoint is written there: one that was killed begins from an earlier one, and has something to heal."""


@dataclass(frozen=True)
class Strike:
    """What is killed, and in which phase of which worker. `step` is None for a heal, whose step nobody can foretell."""

    phase: Point
    part: Part
    step: int | None
    worker: int = 0

    @property
    def place(self) -> str:
        """What the fail-point's files are called."""
        step = "any" if self.step is None else self.step
        # Whoever is rank 0 writes the checkpoint.
        return f"{self.phase}@{step}" + ("" if self.phase == "mid-checkpoint" else f"-{self.worker}")

    @property
    def point(self) -> str:
        """The fail-point, as it is armed."""
        where = self.place.replace("any", "*").replace(f"-{self.worker}", f"/{self.worker}")
        return f"{where}={'kill' if self.part == 'worker' else 'hold'}"


@dataclass(frozen=True)
class Plan:
    """A run: how many workers begin it, how they are started, and what strikes it."""

    workers: int
    how: How
    strikes: tuple[Strike, ...]

    @property
    def points(self) -> str:
        """All fail-points, as they are armed."""
        gates = [f"between-steps@{step}=hold" for step in GATES]
        return ",".join([*gates, *(strike.point for strike in self.strikes)])

    def __str__(self) -> str:
        return f"{self.workers}-{self.how}-" + "-".join(
            f"{strike.phase.removeprefix('mid-')}.{strike.part}" for strike in self.strikes
        )


def step(part: Part, at: int, worker: int = 0) -> Strike:
    return Strike("mid-step", part, at, worker)


def reduce(part: Part, at: int, worker: int = 0) -> Strike:
    return Strike("mid-reduce", part, at, worker)


def heal(part: Part, worker: int) -> Strike:
    """Strike the first heal of a worker that an earlier strike has killed."""
    return Strike("mid-heal", part, None, worker)


def save(part: Part, at: int) -> Strike:
    return Strike("mid-checkpoint", part, at)


def evaluation(part: Part, at: int, worker: int = 0) -> Strike:
    return Strike("mid-evaluation", part, at, worker)


# The first and the eleventh are those of the smallest count.
PLANS = (
    Plan(2, "meeting", (reduce("worker", 5, 1), heal("worker", 1), save("lighthouse", 20))),
    Plan(1, "alone", (step("worker", 3), save("worker", 12))),
    Plan(1, "alone", (evaluation("worker", 6), step("teacher", 10))),
    Plan(1, "alone", (save("teacher", 4), evaluation("valkey", 12), step("worker", 19))),
    Plan(1, "meeting", (step("lighthouse", 3), save("valkey", 12))),
    Plan(1, "meeting", (save("lighthouse", 4), evaluation("teacher", 12), evaluation("worker", 18))),
    Plan(2, "meeting", (reduce("worker", 3, 0), evaluation("lighthouse", 12))),
    Plan(2, "meeting", (reduce("all", 5), step("all", 13))),
    Plan(2, "meeting", (reduce("teacher", 2), reduce("valkey", 10), reduce("lighthouse", 18))),
    Plan(2, "meeting", (step("worker", 5, 1), heal("all", 1))),
    Plan(3, "meeting", (evaluation("worker", 6, 1), heal("worker", 1), reduce("teacher", 18))),
    Plan(2, "meeting", (save("worker", 4), heal("worker", 0))),
    Plan(2, "meeting", (evaluation("all", 6), save("all", 12))),
    Plan(2, "launched", (step("worker", 5, 1), evaluation("worker", 12, 0))),
    Plan(2, "launched", (save("all", 4), reduce("worker", 11, 0))),
    Plan(3, "meeting", (reduce("worker", 5, 2), heal("teacher", 2))),
    Plan(3, "meeting", (step("worker", 6, 1), heal("valkey", 1), step("valkey", 18))),
    Plan(3, "meeting", (step("worker", 4, 0), heal("lighthouse", 0))),
    Plan(3, "meeting", (reduce("all", 6), evaluation("worker", 12, 2), save("worker", 20))),
    Plan(3, "launched", (step("worker", 3, 2), reduce("all", 10))),
)


def chosen(cases: Sequence[_Case], least: int = 1) -> list[_Case]:
    """Return as many of the cases as the scale of this session asks for, evenly spread and always the same ones."""
    count = min(scaled(len(cases), least), len(cases))
    return [cases[index * len(cases) // count] for index in range(count)]
