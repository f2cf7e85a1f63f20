"""Trains the arms of a comparison one after another, each as a run of its own in a process of its own.

What is done is not done again, and what was interrupted goes on from its checkpoint: a run's own folder says which.
Knows nothing of what the arms differ in.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stillhouse.demo.measures import MetricsTail
from stillhouse.errors import ConfigurationError, GuardError, StillhouseError
from stillhouse.processes import Child
from student_worker.comparison.arms import Arm, write_recipe
from student_worker.recipe.sources import ENV_PREFIX
from student_worker.run_folder.journal import METRICS_FILE, RESULT_FILE
from student_worker.run_folder.output import RUN_FILE

POLL_SECONDS = 0.25
STOP_GRACE_SECONDS = 120.0
"""For the step under way and a checkpoint, when a comparison is interrupted."""

COMPLETE = ("done", "stopped")


class TeacherAwayError(StillhouseError):
    """An arm has waited for its teacher in vain; started again, the comparison goes on."""


def read_result(arm: Arm) -> dict[str, Any] | None:
    """Return what an arm that is complete came to, None where it is still to be trained.

    Raises:
        ConfigurationError: its folder holds the result of another recipe.
    """
    try:
        result: dict[str, Any] = json.loads((arm.folder / RESULT_FILE).read_text(encoding="utf-8"))
        theirs, status = result["identity"]["recipe"], result["status"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{arm.folder / RESULT_FILE} cannot be read: {error}; remove its folder") from error
    if theirs != arm.recipe.hash:
        raise ConfigurationError(
            f"{arm.folder} holds a run of another recipe; name another --output-dir, or give the recipe it began with"
        )
    return result if status in COMPLETE else None


def run_arms(arms: list[Arm], environment: Mapping[str, str], console: Console) -> None:
    """Train every arm that is not complete.

    Args:
        arms: in the order in which they are trained.
        environment: what their processes are given besides our own environment.
        console: where their progress is shown.

    Raises:
        ConfigurationError: an arm was refused.
        GuardError: a guard stopped an arm.
        TeacherAwayError: its teacher stayed away.
        KeyboardInterrupt: we were interrupted; the arm under way has written a checkpoint.
    """
    for number, arm in enumerate(arms, 1):
        title = f"{number} of {len(arms)}: {arm.title}"
        if read_result(arm) is not None:
            console.print(f"{title}: done before")
            continue
        arm.folder.parent.mkdir(parents=True, exist_ok=True)
        write_recipe(arm)
        with _recipe_file_rules():
            _run(arm, environment, title, console)


@contextlib.contextmanager
def _recipe_file_rules() -> Iterator[None]:
    """Keep STUDENT_* variables from the arms: the comparison's recipe has read them, and an arm's file says all."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(ENV_PREFIX)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _run(arm: Arm, environment: Mapping[str, str], title: str, console: Console) -> None:
    argv = [sys.executable, "-m", "student_worker", "train", str(arm.file)]
    if (arm.folder / RUN_FILE).exists():
        argv.append("--resume")
    log = arm.file.with_suffix(".log")
    log.unlink(missing_ok=True)
    with Child(arm.title, argv, log, environment) as child, _Shown(arm, title, console) as shown:
        status = None
        try:
            while status is None:
                status = child.wait(POLL_SECONDS)
                shown.update()
        except KeyboardInterrupt:
            console.print(f"{arm.title}: writing a checkpoint; the same command goes on from it")
            child.stop(STOP_GRACE_SECONDS)
            raise
    if status != 0:
        raise _failed(arm, status, child)


def _failed(arm: Arm, status: int, child: Child) -> StillhouseError:
    last = child.tail(1).removeprefix("error: ")
    log = os.path.relpath(child.log_path)
    match status:
        case 2:
            return ConfigurationError(f"the arm {arm.title} was refused: {last} (log: {log})")
        case 3:
            return GuardError(f"a guard stopped the arm {arm.title}: {last} (log: {log})")
        case 1:
            return TeacherAwayError(f"the arm {arm.title} is to be started again: {last} (log: {log})")
        case _:
            return StillhouseError(f"the arm {arm.title} ended with exit code {status}: {last} (log: {log})")


class _Shown:
    """Shows one arm's progress: on a terminal as a bar, and each evaluation as a line."""

    def __init__(self, arm: Arm, title: str, console: Console) -> None:
        self._title, self._console = title, console
        self._tail = MetricsTail(arm.folder / METRICS_FILE)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=arm.recipe.max_steps)

    def update(self) -> None:
        """Show what is new."""
        for record in self._tail.read():
            if record["event"] == "step":
                self._bar.update(self._task, completed=record["step"])
            elif record["event"] == "evaluation":
                figures = "  ".join(
                    f"{name.replace('_', ' ')} {record[name]:.4f}"
                    for name in ("cross_entropy", "kl", "agreement")
                    if record.get(name) is not None
                )
                self._console.print(f"{self._title}: step {record['step']}, held out: {figures}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
