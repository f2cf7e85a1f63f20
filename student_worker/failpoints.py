"""Named places where a test lets a worker die or freeze: nothing at all unless `STILLHOUSE_FAILPOINTS` says so.

    STILLHOUSE_FAILPOINTS="mid-step@3/1=kill,mid-reduce@5=freeze:4"   # name@step, /worker index, action
    STILLHOUSE_FAILPOINTS_DIR=/some/folder                            # where each strike leaves a file, before it acts

A point strikes once: its file is made exclusively, so neither a restarted worker nor a second one strikes again, and a
test can see that it did strike. Knows nothing of what it interrupts.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from stillhouse.errors import ConfigurationError

Point = Literal[
    "mid-step",  # some micro-shards of the step computed, others not
    "mid-reduce",  # the gradient's sum under way between workers
    "before-vote",  # the sum is there, the step not yet agreed on
    "after-vote",  # agreed on, no weight moved yet
    "mid-heal",  # a peer's weights on their way to a newcomer, at the receiving end
    "mid-offer",  # the same, at the giving end
    "mid-checkpoint",  # tensors written aside, the checkpoint not yet in its place
    "mid-evaluation",  # some of the held-out part evaluated
    "mid-export",  # the export begun, not yet in its place
]

VARIABLE = "STILLHOUSE_FAILPOINTS"
FOLDER_VARIABLE = "STILLHOUSE_FAILPOINTS_DIR"
WORKER_VARIABLE = "STUDENT_WORKER_INDEX"
MAX_FREEZE_SECONDS = 600.0

_ARMED = re.compile(r"(?P<name>[a-z-]+)@(?P<step>\d+)(/(?P<worker>\d+))?=(kill|freeze:(?P<seconds>\d+(\.\d+)?))")


@dataclass(frozen=True, slots=True)
class _Armed:
    name: str
    step: int
    worker: int | None
    freeze_seconds: float | None
    """None kills."""


def fail_point(name: Point, step: int) -> None:
    """Die or freeze here, if this point is armed for this step and has not struck yet."""
    if VARIABLE not in os.environ:
        return
    for armed in _armed(os.environ[VARIABLE]):
        if (armed.name, armed.step) != (name, step):
            continue
        if armed.worker is not None and str(armed.worker) != os.environ.get(WORKER_VARIABLE, "0"):
            continue
        if _strike(armed):
            if armed.freeze_seconds is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                time.sleep(armed.freeze_seconds)


def _strike(armed: _Armed) -> bool:
    """Leave the file that says so; False where there is one."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, "."))
    place = f"{armed.name}@{armed.step}" + ("" if armed.worker is None else f"-{armed.worker}")
    try:
        with (folder / f"{place}.struck").open("x", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


@cache
def _armed(text: str) -> tuple[_Armed, ...]:
    found = []
    for part in text.split(","):
        match = _ARMED.fullmatch(part.strip())
        if match is None or match["name"] not in get_args(Point):
            raise ConfigurationError(
                f"{VARIABLE}: {part.strip()!r} is no fail-point; write NAME@STEP[/WORKER]=kill or =freeze:SECONDS, "
                f"with a name of {', '.join(get_args(Point))}"
            )
        seconds = None if match["seconds"] is None else min(float(match["seconds"]), MAX_FREEZE_SECONDS)
        worker = None if match["worker"] is None else int(match["worker"])
        found.append(_Armed(match["name"], int(match["step"]), worker, seconds))
    return tuple(found)
