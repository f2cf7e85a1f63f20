"""receipt.json: what ran, on what, from what, to what; written while the run goes on, so that whatever ends it is told.

The first worker writes it: at the start, whenever the number of workers changes, with each checkpoint, and at the end.
One that is killed leaves `running`. Which worker is first may change; whoever becomes it goes on from the file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillhouse.errors import CheckpointError
from stillhouse.fingerprint import fingerprint
from student_worker.callbacks.base import Callback, RunView, StepRecord
from student_worker.callbacks.best import MetricName, figure
from student_worker.evaluation.figures import Evaluation
from student_worker.run_folder.journal import write_whole
from student_worker.run_folder.output_proof import differences
from student_worker.state import WorkerState

RECEIPT_FILE = "receipt.json"
CHECKSUM = "checksum"
IDENTITY = ("recipe", "data", "teacher", "seed")
"""What an earlier receipt must agree on to be of this run."""


class Receipt(Callback):
    """Keeps the receipt of a run.

    Args:
        folder: of the run.
        facts: what does not change: versions, fingerprints, host and device.
        state: where steps and tokens are counted.
        metric: the held-out figure that is the best by.
        devices: tells what each worker trains on.
        answers: tells how many answers this worker has had so far, and from where.
    """

    def __init__(
        self,
        folder: Path,
        facts: dict[str, Any],
        state: WorkerState,
        metric: MetricName,
        devices: Callable[[], dict[str, Any]] = dict,
        answers: Callable[[], dict[str, int]] = dict,
    ) -> None:
        self._path = folder / RECEIPT_FILE
        self._facts = facts
        self._state = state
        self._metric = metric
        self._devices = devices
        self._answers = answers
        self._answers_of_others: dict[str, int] = {}
        self._answers_told: dict[str, int] = {}
        self._started = time.time()
        self._resumes: list[dict[str, float]] = []
        self._world_sizes: list[tuple[int, int]] = []
        self._first_loss: float | None = None
        self._last_loss: float | None = None
        self._best: dict[str, Any] | None = None
        self._is_writing = False

    def begin(self) -> None:
        """Write that the run is under way, for the first worker of a start."""
        self._take_over()
        if self._state.step > 0:
            self._resumes.append({"step": self._state.step, "at": time.time()})
        self._write("running")

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        """Note the losses, and who took part."""
        self._last_loss = step.loss
        if step.step == 1:
            self._first_loss = step.loss
        changed = not self._world_sizes or self._world_sizes[-1][1] != step.world_size
        if changed:
            self._world_sizes.append((step.step, step.world_size))
        if run.is_first and not self._is_writing:
            self._take_over()
        if run.is_first and (changed or not self._is_writing):
            self._write("running")
        self._is_writing = run.is_first

    def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
        """Note the best."""
        self._note_best({"step": run.step, "metric": self._metric, "value": figure(evaluation, self._metric)})

    def on_save(self, run: RunView, checkpoint: str) -> None:
        """Say how far the run is."""
        del checkpoint
        if run.is_first:
            self._write("running")

    def close(self, status: str, reason: str | None = None, output: dict[str, Any] | None = None) -> None:
        """Say how the run ended.

        Args:
            status: done, stopped, interrupted, failed or smoke.
            reason: what ended it, where that is not its last step.
            output: the proof of what was exported.

        Raises:
            CheckpointError: it could not be written.
        """
        if not self._is_writing:
            self._take_over()
        self._write(status, reason=reason, output=output, ended=time.time())

    def _take_over(self) -> None:
        """Go on from what an earlier writer has left."""
        past = read_receipt(self._path)
        if past is None or any(past.get(key) != self._facts.get(key) for key in IDENTITY):
            return
        begun = self._world_sizes[0][0] if self._world_sizes else self._state.step + 1
        sizes = [*((step, size) for step, size in past["world_sizes"] if step < begun), *self._world_sizes]
        pairs = zip([(0, 0), *sizes], sizes, strict=False)
        self._world_sizes = [entry for before, entry in pairs if before[1] != entry[1]]
        self._started = min(self._started, past["started"])
        self._resumes = past["resumes"]
        # Whoever wrote after this worker has counted its answers in.
        counted = past.get("answers") or {}
        self._answers_of_others = {name: n - self._answers_told.get(name, 0) for name, n in counted.items()}
        if self._first_loss is None:
            self._first_loss = past["losses"]["first"]
        self._last_loss = past["losses"]["last"] if self._last_loss is None else self._last_loss
        if past["losses"]["best_held_out"] and past["losses"]["best_held_out"]["step"] <= self._state.step:
            self._note_best(past["losses"]["best_held_out"])

    def _note_best(self, best: dict[str, Any]) -> None:
        value = best["value"]
        if value is not None and (self._best is None or value < self._best["value"]):
            self._best = best

    def _write(
        self,
        status: str,
        *,
        reason: str | None = None,
        output: dict[str, Any] | None = None,
        ended: float | None = None,
    ) -> None:
        self._answers_told = self._answers()
        names = {**self._answers_of_others, **self._answers_told}
        content = {
            "status": status,
            "reason": reason,
            **self._facts,
            "devices": self._devices(),
            "started": self._started,
            "ended": ended,
            "resumes": self._resumes,
            "steps": self._state.step,
            "tokens": self._state.num_tokens,
            "world_sizes": [list(entry) for entry in self._world_sizes],
            "losses": {"first": self._first_loss, "last": self._last_loss, "best_held_out": self._best},
            "answers": {name: self._answers_of_others.get(name, 0) + self._answers_told.get(name, 0) for name in names},
            "output": output,
        }
        write_whole(self._path, json.dumps(content | {CHECKSUM: _checksum(content)}, indent=2) + "\n")


def read_receipt(path: Path) -> dict[str, Any] | None:
    """Return a receipt, None where there is none that is whole and as it was written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        claimed = content.pop(CHECKSUM)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return content if claimed == _checksum(content) else None


def verify(folder: Path) -> dict[str, Any]:
    """Check the receipt of a run against what was exported, and return it.

    Raises:
        CheckpointError: there is no whole receipt, the run did not come to its end, or the export is another.
    """
    path = folder / RECEIPT_FILE
    if not path.exists():
        raise CheckpointError(f"{folder} holds no {RECEIPT_FILE}; name the output_dir of a run")
    receipt = read_receipt(path)
    if receipt is None:
        raise CheckpointError(f"{path} is not as it was written: its checksum does not fit")
    if receipt["output"] is None:
        because = f" ({receipt['reason']})" if receipt["reason"] else ""
        raise CheckpointError(f"{path} says {receipt['status']}{because}: nothing was exported that it could prove")
    if words := differences(folder / receipt["output"]["folder"], receipt["output"]):
        raise CheckpointError(f"{folder / receipt['output']['folder']} is not what the run wrote: {'; '.join(words)}")
    return receipt


def _checksum(content: dict[str, Any]) -> str:
    return fingerprint("receipt", json.dumps(content, sort_keys=True))
