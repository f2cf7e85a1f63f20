"""A run's figures as TensorBoard reads them, in OUTPUT_DIR/tensorboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from student_worker.cadence import Cadence
from student_worker.callbacks.base import RunView
from student_worker.callbacks.tracker import Figures, Line, Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class ToTensorBoard(Tracker):
    """Writes event files; each writer's first event tells readers to forget what stands there of later steps."""

    def __init__(self, cadence: Cadence, recent: Callable[[], Sequence[Line]]) -> None:
        super().__init__("tensorboard", cadence, recent)
        self._writer: SummaryWriter | None = None

    def open(self, run: RunView, step: int) -> bool:
        """Begin a file of this writer's own beside those of earlier ones."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.output_dir / FOLDER), purge_step=step)
        return True

    def write(self, step: int, figures: Figures) -> None:
        """Add scalars, and bring them to the file: a killed worker leaves nothing behind unwritten."""
        assert self._writer is not None  # noqa: S101 - `open` comes first
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, status: str | None) -> None:
        """End the file."""
        del status
        if self._writer is not None:
            self._writer.close()
