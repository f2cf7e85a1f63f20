"""Where a service stands in its life: loading, ready, draining. Both doors ask here for the teacher.

Knows nothing of transports.
"""

from __future__ import annotations

from typing import Literal

from stillhouse.errors import TeacherUnavailableError
from teacher_service.metrics import Metrics
from teacher_service.teacher import Teacher

Phase = Literal["loading", "ready", "draining"]

_REASONS: dict[Phase, str] = {
    "loading": "the teacher is loading its weights; come again shortly",
    "draining": "the teacher is draining; ask another, or this one once it is back",
}


class Lifecycle:
    """The phase of a service, and its teacher once there is one."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._teacher: Teacher | None = None
        self.phase: Phase = "loading"

    def ready(self, teacher: Teacher) -> None:
        """Open for requests."""
        self._teacher = teacher
        self.phase = "ready"
        self._metrics.ready.set(1)

    def drain(self) -> None:
        """Refuse new requests; those in flight go on."""
        self.phase = "draining"
        self._metrics.ready.set(0)

    @property
    def teacher(self) -> Teacher:
        """The teacher.

        Raises:
            TeacherUnavailableError: it is not there yet, or not any more.
        """
        if self._teacher is None or self.phase != "ready":
            raise TeacherUnavailableError(_REASONS[self.phase])
        return self._teacher
