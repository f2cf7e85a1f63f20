"""Waits for a teacher as `stillhouse.patience` does; to a run, a teacher that has become another is a guard that fell.

Knows nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from stillhouse import patience
from stillhouse.errors import FingerprintMismatchError, GuardError
from stillhouse.patience import CLIENT_ATTEMPTS, Interrupted, TeacherAwayError

__all__ = ["CLIENT_ATTEMPTS", "Interrupted", "PatientTeacher", "TeacherAwayError"]

_R = TypeVar("_R")


class PatientTeacher(patience.PatientTeacher):
    """Asks a teacher, waiting with backoff while it is away."""

    def call(self, ask: Callable[[], _R]) -> _R:
        """Return what `ask` does.

        Raises:
            GuardError: the teacher is not the one that the run began with.
            TeacherAwayError: it stayed away too long.
            TeacherError: it refuses the request, the token or us.
            Interrupted: the run is to stop.
        """
        try:
            return super().call(ask)
        except FingerprintMismatchError as error:
            raise GuardError(f"the teacher has changed while the run went on: {error}") from error
