"""What a worker's page shows: the history of the run, put into the words and series that the templates draw."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

from stillhouse.data import Sample
from student_worker.callbacks.base import Callback
from student_worker.metrics import Phase, WorkerMetrics
from student_worker.page.history import Look, RunHistory, finite
from student_worker.page.voice import Voice, decoder_of
from student_worker.recipe.schema import Recipe
from student_worker.students.base import Student

PHASE_COLOURS: dict[Phase, tuple[str, str]] = {
    "teacher_wait": ("rust", "waiting for the teacher"),
    "compute": ("moss", "forward and backward"),
    "reduce": ("slate", "exchange of gradients"),
    "quorum": ("plum", "agreeing who takes part"),
    "update": ("sand", "moving the weights"),
    "evaluate": ("copper", "held-out evaluation"),
    "checkpoint": ("ink", "checkpoint"),
}
assert set(PHASE_COLOURS) == set(get_args(Phase))  # noqa: S101 - a phase without a colour would not be shown

_RATE_STEPS = 20


class RunPage:
    """The page of one worker; it is there before the run is."""

    def __init__(self, recipe: Recipe, metrics: WorkerMetrics, is_training: Callable[[], bool]) -> None:
        self._recipe = recipe
        self._is_training = is_training
        self._history = RunHistory(metrics)
        self._voice: Voice | None = None
        self._facts: dict[str, str] = {}
        self._lock = threading.Lock()

    def watch(self, student: Student, samples: Callable[[], Sequence[Sample]], facts: dict[str, str]) -> list[Callback]:
        """Return what must be told of the run; `facts` are shown as they are."""
        self._facts = facts
        self._voice = Voice(student, samples, decoder_of(student))
        return [self._history, self._voice]

    def listen(self, *, now: bool = False) -> None:
        """Note that somebody looks at the page."""
        if self._voice is not None:
            self._voice.listen(now=now)

    def view(self) -> dict[str, Any]:
        """Return what the templates show."""
        look = self._history.look()
        last = look.steps[-1] if look.steps else {}
        rate = _steps_each_second(look)
        left = look.max_steps - look.step
        return {
            "name": self._recipe.run_name or self._recipe.output_dir.resolve().name,
            "worker": self._recipe.worker_index,
            "state": look.status if look.status != "starting" or not self._is_training() else "training",
            "look": look,
            "last": {name: finite(value) for name, value in last.items()},
            "evaluated": {k: finite(v) for k, v in look.evaluations[-1].items()} if look.evaluations else {},
            "left_seconds": left / rate if rate and left > 0 else None,
            "facts": self._facts,
            "workers": self._workers(),
            "said": self._voice.said if self._voice is not None else [],
            "can_speak": self._voice is not None,
            "now": time.time(),
            "losses": _series(look, "loss"),
            "divergences": _series(look, "kl"),
            "held_out_losses": _points(look.evaluations, "loss"),
            "held_out_divergences": _points(look.evaluations, "kl"),
            "agreements": _points(look.evaluations, "agreement"),
            "rates": _series(look, "tokens_per_second"),
            "worlds": _stairs(look),
            "phases": _phases(look.phases, look.seconds),
            "recent_phases": _phases(look.recent_phases, look.recent_seconds),
        }

    def _workers(self) -> list[dict[str, str]]:
        """Return what the workers that share this folder have said of themselves."""
        found = []
        for path in sorted(self._recipe.output_dir.glob("worker-*.json")):
            try:
                said = json.loads(path.read_text(encoding="utf-8"))
                facts = said.get("facts") or {}
                found.append(
                    {
                        "number": path.stem.removeprefix("worker-"),
                        "http": str(said["http"]),
                        "device": f"{facts.get('device', '?')} ({facts.get('name', '?')})",
                        "host": str(facts.get("host", "?")),
                    }
                )
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # being written
        return found


def _points(lines: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(line["step"], value) for line in lines if (value := finite(line.get(name))) is not None]


def _series(look: Look, name: str) -> list[tuple[float, float]]:
    return _points(look.steps, name)


def _stairs(look: Look) -> list[tuple[float, float]]:
    """Return the workers by step, up to now."""
    points = [(float(step), float(size)) for step, size in look.worlds]
    return [*points, (float(max(look.step, int(points[-1][0]))), points[-1][1])] if points else []


def _steps_each_second(look: Look) -> float | None:
    recent = [line["step_seconds"] for line in look.steps[-_RATE_STEPS:] if finite(line.get("step_seconds"))]
    return len(recent) / sum(recent) if recent and sum(recent) > 0 else None


def _phases(seconds: dict[Phase, float], total: float) -> list[tuple[str, str, float, float]]:
    """Return (colour, words, seconds, share) of each phase that took any time, and of what is left."""
    rest = max(0.0, total - sum(seconds.values()))
    whole = max(total, sum(seconds.values())) or 1.0
    named = [(*PHASE_COLOURS[phase], spent) for phase, spent in seconds.items() if spent > 0]
    ordered = sorted(named, key=lambda one: list(PHASE_COLOURS.values()).index((one[0], one[1])))
    parts = [*ordered, ("ash", "all else", rest)]
    return [(colour, words, spent, spent / whole) for colour, words, spent in parts if spent / whole >= 0.0005]
