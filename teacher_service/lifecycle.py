"""Where the process that holds the model stands in its life, and how far loading has come.

Knows nothing of transports.
"""

from __future__ import annotations

from teacher_service.life import Life
from teacher_service.metrics import Metrics
from teacher_service.progress import Progress
from teacher_service.teacher import Teacher


class Lifecycle(Life[Teacher]):
    """The phase of a service, and its teacher once there is one."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics)
        self.progress = Progress()
        """How far loading has come; of no interest once it is over."""
