"""How far the loading of a teacher has come: a stage and, where it is known, the part of it that is done.

Whoever waits holds a `Progress` and hands it to the thread that loads; whoever loads calls `report`, and need not know
whether anybody listens. Knows nothing of models or of how readiness is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of loading. `fraction`, from 0 to 1, is None where nobody can tell."""

    name: str
    fraction: float | None = None

    def __str__(self) -> str:
        return self.name if self.fraction is None else f"{self.name} {self.fraction:.0%}"


class Progress:
    """What a loading thread has last reported. Read from any thread; `stage` is replaced whole, never changed."""

    def __init__(self) -> None:
        self.stage = Stage("starting")

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Let `report`, called inside by this thread, end here."""
        token = _listening.set(self)
        try:
            yield
        finally:
            _listening.reset(token)

    def __str__(self) -> str:
        return str(self.stage)


_listening: ContextVar[Progress | None] = ContextVar("listening", default=None)


def report(stage: str, done: float = 0.0, total: float = 0.0) -> None:
    """Say which stage has begun, or how much of it is done; nothing happens where nobody listens.

    Args:
        stage: a word or two, shown to whoever asks whether the service is ready. Example: weights.
        done: how much of `total` is done, in any unit.
        total: 0 where nobody can tell.
    """
    progress = _listening.get()
    if progress is not None:
        progress.stage = Stage(stage, min(1.0, max(0.0, done / total)) if total > 0 else None)
