"""The phases of a service that answers: loading, ready, draining. Doors ask here for whoever answers.

Knows nothing of transports, nor of who that is: the teacher, or a front process's way to it.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from stillhouse.errors import TeacherUnavailableError
from teacher_service.answering import Answering, HeadGiving
from teacher_service.metrics import Metrics

Phase = Literal["loading", "ready", "draining"]

_REASONS: dict[Phase, str] = {
    "loading": "the teacher is loading its weights; come again shortly",
    "draining": "the teacher is draining; ask another, or this one once it is back",
}

T = TypeVar("T", bound=Answering)


class Life(Generic[T]):
    """The phase of a service, and whoever answers once there is somebody."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._teacher: T | None = None
        self._heads: HeadGiving | None = None
        self.phase: Phase = "loading"

    def begin(self, teacher: T, heads: HeadGiving) -> None:
        """Open for requests."""
        self._teacher = teacher
        self._heads = heads
        self.phase = "ready"
        self._metrics.ready.set(1)

    def drain(self) -> None:
        """Refuse new requests; those in flight go on."""
        self.phase = "draining"
        self._metrics.ready.set(0)

    @property
    def teacher(self) -> T:
        """Whoever answers.

        Raises:
            TeacherUnavailableError: there is nobody yet, or not any more.
        """
        if self._teacher is None or self.phase != "ready":
            raise TeacherUnavailableError(_REASONS[self.phase])
        return self._teacher

    @property
    def head_bytes(self) -> HeadGiving:
        """Whoever gives the output head.

        Raises:
            TeacherUnavailableError: as `teacher`.
        """
        if self._heads is None or self.phase != "ready":
            raise TeacherUnavailableError(_REASONS[self.phase])
        return self._heads
