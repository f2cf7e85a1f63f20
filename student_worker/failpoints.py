"""Named places where a test lets a worker die, freeze or wait: nothing at all unless `STILLHOUSE_FAILPOINTS` says so.

    STILLHOUSE_FAILPOINTS="mid-step@3/1=kill,mid-heal@*=kill,between-steps@5=hold"   # name@step, /worker index, action
    STILLHOUSE_FAILPOINTS_DIR=/some/folder                            # where each strike leaves a file, before it acts

The step of a point is how many were committed when it is passed; `*` is any. The actions:

    kill              SIGKILL
    stop              SIGSTOP: the whole process freezes until somebody sends SIGCONT
    freeze:SECONDS    the thread that came here sleeps; the others, heartbeats among them, go on
    hold              whoever comes here waits until the file NAME@STEP.go is there

A point strikes once: its file NAME@STEP[-WORKER].struck is made exclusively, so neither a restarted worker nor a second
one strikes again, and a test can see that it did strike. Only `hold` keeps everybody. Knows nothing of what it
interrupts.
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
    "between-steps",  # the weights moved, the next step not yet begun
    "mid-step",  # the gradients of some of this worker's micro-shards computed, of others not
    "mid-reduce",  # a collective begun and not yet finished
    "before-vote",  # the sum is there, the step not yet agreed on
    "after-vote",  # agreed on, no weight moved yet
    "mid-heal",  # a peer's weights on their way to a newcomer, at the receiving end
    "mid-offer",  # the same, at the giving end
    "mid-checkpoint",  # tensors written aside, the checkpoint not yet in its place
    "mid-evaluation",  # some of the held-out part evaluated
    "mid-export",  # the export begun, not yet in its place; it knows no step: 0
]
Action = Literal["kill", "stop", "freeze", "hold"]

VARIABLE = "STILLHOUSE_FAILPOINTS"
FOLDER_VARIABLE = "STILLHOUSE_FAILPOINTS_DIR"
WORKER_VARIABLE = "STUDENT_WORKER_INDEX"
MAX_WAIT_SECONDS = 600.0
"""Of `freeze` and `hold`: longer than any test."""

_POLL_SECONDS = 0.01
_ARMED = re.compile(
    r"(?P<name>[a-z-]+)@(?P<step>\d+|\*)(/(?P<worker>\d+))?=(?P<action>kill|stop|hold|freeze:(?P<seconds>\d+(\.\d+)?))"
)


@dataclass(frozen=True, slots=True)
class Armed:
    """A point that acts. `step` and `worker` are None where any will do."""

    name: str
    step: int | None
    worker: int | None
    action: Action
    seconds: float = 0.0

    def is_here(self, name: str, step: int) -> bool:
        """Tell whether it acts in this worker, at this place and step."""
        if self.name != name or self.step not in (None, step):
            return False
        return self.worker is None or str(self.worker) == os.environ.get(WORKER_VARIABLE, "0")

    @property
    def place(self) -> str:
        """What its files are called."""
        return f"{self.name}@{'any' if self.step is None else self.step}" + (
            "" if self.worker is None else f"-{self.worker}"
        )


def fail_point(name: Point, step: int) -> None:
    """Die, freeze or wait here, if this point is armed for this step and has not struck yet.

    Raises:
        ConfigurationError: the variable cannot be understood.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return
    for armed in parse(text):
        if armed.is_here(name, step):
            _act(armed, step, Path(os.environ.get(FOLDER_VARIABLE, ".")))


@cache
def parse(text: str) -> tuple[Armed, ...]:
    """Return the armed points of a text.

    Raises:
        ConfigurationError: a part of it is none.
    """
    found = []
    for part in text.split(","):
        match = _ARMED.fullmatch(part.strip())
        if match is None or match["name"] not in get_args(Point):
            raise ConfigurationError(
                f"{VARIABLE}: {part.strip()!r} is no fail-point; write NAME@STEP[/WORKER]=ACTION, with a name of "
                f"{', '.join(get_args(Point))}, and kill, stop, hold or freeze:SECONDS"
            )
        step = None if match["step"] == "*" else int(match["step"])
        worker = None if match["worker"] is None else int(match["worker"])
        action = next(known for known in get_args(Action) if match["action"].startswith(known))
        found.append(Armed(match["name"], step, worker, action, float(match["seconds"] or 0.0)))
    return tuple(found)


def _act(armed: Armed, step: int, folder: Path) -> None:
    is_first = _strike(folder / f"{armed.place}.struck", step)
    if armed.action == "hold":
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        while not (folder / f"{armed.place}.go").exists() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    elif is_first and armed.action == "freeze":
        time.sleep(min(armed.seconds, MAX_WAIT_SECONDS))
    elif is_first:
        os.kill(os.getpid(), signal.SIGKILL if armed.action == "kill" else signal.SIGSTOP)


def _strike(path: Path, step: int) -> bool:
    """Leave the file that says which process it was and at which step; False where there is one."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {step}\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True
