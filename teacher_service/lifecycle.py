"""Where a service stands in its life: loading, ready, draining. Both doors ask here for the teacher.

Knows nothing of transports.
"""

from __future__ import annotations

from typing import Literal

from stillhouse.errors import TeacherUnavailableError
from teacher_service.head_bytes import HeadBytes
from teacher_service.metrics import Metrics
from teacher_service.progress import Progress
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
        self._head_bytes: HeadBytes | None = None
        self.phase: Phase = "loading"
        self.progress = Progress()
        """How far loading has come; of no interest once it is over."""

    def ready(self, teacher: Teacher) -> None:
        """Open for requests."""
        self._teacher = teacher
        self._head_bytes = HeadBytes(teacher.output_head, teacher.description.compute_dtype)
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

    @property
    def head_bytes(self) -> HeadBytes:
        """The bytes of the teacher's output head.

        Raises:
            TeacherUnavailableError: as `teacher`.
        """
        if self._head_bytes is None or self.phase != "ready":
            raise TeacherUnavailableError(_REASONS[self.phase])
        return self._head_bytes
