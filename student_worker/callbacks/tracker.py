"""Sends a run's figures elsewhere without ever holding it up: the base of what writes to TensorBoard and W&B.

The first worker's figures go to a thread of their own. A tracker that is away, full or broken costs a warning and no
step. Knows nothing of any tracker's own interface.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from queue import Full, Queue
from typing import Any

import structlog

from student_worker.cadence import Cadence
from student_worker.callbacks.base import Callback, RunView, StepRecord
from student_worker.evaluation.figures import Evaluation
from student_worker.run_folder.journal import TAIL_LINES

MAX_WAITING = 4096
"""Lines that wait for a slow tracker; those beyond are dropped, and said to be."""
CLOSE_SECONDS = 30.0
"""How long the end of a run waits for its last figures to be taken."""

Figures = Mapping[str, float]
Line = Mapping[str, Any]
"""As metrics.jsonl holds it."""

_log = structlog.get_logger(__name__)


class Tracker(Callback):
    """Hands figures over to a thread, which hands them to a subclass.

    Figures are called train/NAME and eval/NAME. Whoever comes to be first opens the run anew and begins with the last
    lines that every worker remembers: what its predecessor was killed before it could send.

    Args:
        name: of the tracker, for the log.
        cadence: at which steps a line is sent.
        recent: the run's last lines, as metrics.jsonl holds them.
    """

    def __init__(self, name: str, cadence: Cadence, recent: Callable[[], Sequence[Line]]) -> None:
        self._name = name
        self._cadence = cadence
        self._recent = recent
        self._queue: Queue[Callable[[], None] | None] = Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._is_open = self._has_failed = self._is_late = False

    @abstractmethod
    def open(self, run: RunView, step: int) -> bool:
        """Begin, or go on with, the run's one record from `step` on: what it has of that step and later is done again.

        Returns:
            Whether it wants the run's last lines again.
        """

    @abstractmethod
    def write(self, step: int, figures: Figures) -> None:
        """Take figures of a step; steps never go back."""

    @abstractmethod
    def close(self, status: str | None) -> None:
        """End the record with the run's status, or leave it to another worker if that is None."""

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        """Send the line that metrics.jsonl gets."""
        if self._cadence.log_at(step.step):
            self._send(run, "step", asdict(step))

    def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
        """Send all figures that there are."""
        self._send(run, "evaluation", {"step": run.step, **evaluation.as_json()})

    def on_train_end(self, run: RunView, status: str) -> None:
        """Wait for the last figures, but not for long."""
        del run
        if self._thread is None:
            return
        deadline = time.monotonic() + CLOSE_SECONDS
        with contextlib.suppress(Full):
            if self._is_open:
                self._queue.put(lambda: self.close(status), timeout=CLOSE_SECONDS)
            self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            _log.warning("tracker_left_behind", tracker=self._name, waited_seconds=CLOSE_SECONDS)

    def _send(self, run: RunView, event: str, fields: Mapping[str, Any]) -> None:
        line = {"event": event, **fields}
        if not run.is_first:
            if self._is_open:
                self._is_open = False
                self._put(lambda: self.close(None))
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        if not self._is_open:
            self._is_open = True
            # The trainer goes on changing its own: the thread gets copies.
            view, recent = replace(run), [known for known in whole_steps(self._recent()) if not _is_same(known, line)]
            self._put(lambda: self._begin(view, recent, line))
        self._put(lambda: self._write(line))

    def _begin(self, run: RunView, recent: Sequence[Line], line: Line) -> None:
        if self.open(run, min(known["step"] for known in (*recent, line))):
            for known in recent:
                self._write(known)

    def _write(self, line: Line) -> None:
        kind = {"step": "train", "evaluation": "eval"}[line["event"]]
        known = {name: value for name, value in line.items() if name not in ("event", "step") and value is not None}
        # One that is not finite says that there is none: no teacher was asked, say.
        figures = {f"{kind}/{name}": float(value) for name, value in known.items() if math.isfinite(value)}
        self.write(line["step"], figures)

    def _put(self, task: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait(task)
        except Full:
            if not self._is_late:
                self._is_late = True
                _log.warning(
                    "tracker_is_slow", tracker=self._name, dropped="figures, while so many wait", waiting=MAX_WAITING
                )

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if self._has_failed:
                continue
            try:
                task()
            except Exception as error:  # noqa: BLE001 - whatever ails a tracker, the run goes on
                self._has_failed = True
                _log.warning(
                    "tracker_failed",
                    tracker=self._name,
                    reason=f"{type(error).__name__}: {error}",
                    remedy="the run goes on without it; metrics.jsonl has every line",
                )


def whole_steps(recent: Sequence[Line]) -> list[Line]:
    """Return copies of a run's last lines, without those of a step whose others may have been forgotten."""
    is_cut = len(recent) >= TAIL_LINES
    return [dict(line) for line in recent if not is_cut or line["step"] > recent[0]["step"]]


def _is_same(one: Line, other: Line) -> bool:
    return (one["step"], one["event"]) == (other["step"], other["event"])
