"""A line of metrics.jsonl and of the log for each step and evaluation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import structlog

from student_worker.cadence import Cadence
from student_worker.callbacks.base import Callback, RunView, StepRecord
from student_worker.evaluation.figures import Evaluation
from student_worker.run_folder.journal import Journal

_log = structlog.get_logger(__name__)


class Lines(Callback):
    """Every worker remembers the lines, the first one writes them."""

    def __init__(self, journal: Journal, cadence: Cadence) -> None:
        self._journal = journal
        self._cadence = cadence

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        """Write at every `logging_steps`."""
        if self._cadence.log_at(step.step):
            fields = asdict(step)
            self._journal.add(event="step", **fields)
            if run.is_first:
                _log.info("step", **{name: round(value, 6) for name, value in fields.items()})
        self._flush(run)

    def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
        """Write each one."""
        self._journal.add(event="evaluation", step=run.step, **evaluation.as_json())
        if run.is_first:
            _log.info("evaluation", step=run.step, **evaluation.as_json())
        self._flush(run)

    def _flush(self, run: RunView) -> None:
        self._journal.flush(step=run.step, writes=run.is_first, sync=self._cadence.save_at(run.step))

    def progress(self) -> list[dict[str, Any]]:
        """Return the newest lines, which a newcomer that becomes first may have to write."""
        return self._journal.progress()

    def restore(self, progress: list[dict[str, Any]]) -> None:
        """Take over a peer's lines, or a checkpoint's."""
        self._journal.restore(progress)
