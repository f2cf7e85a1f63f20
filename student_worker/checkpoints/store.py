"""A run's checkpoints: written in the background, kept by count and by best, resumed from the last good one.

One worker of a run writes at a time, the one of rank 0; each has a store. Knows nothing of training: tensors have
names, metadata is JSON, and the best is the one that the caller says is the best.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from stillhouse.errors import CheckpointError
from student_worker.checkpoints.folder import Folder
from student_worker.checkpoints.layout import Checkpoint, DamagedError, folder_name, metadata_copy, refuse_useless
from student_worker.checkpoints.place import Place
from student_worker.checkpoints.remote import Remote
from student_worker.checkpoints.snapshot import Snapshot
from student_worker.planning.resources import free_memory

BEST_FILE = "best.json"
WAIT_SECONDS = 1800.0
"""A write that takes longer than this, as on a network drive that is away, has failed."""
MAX_LISTINGS = 5
"""How often a reader looks again when what it was about to read was removed for a newer one."""

_log = structlog.get_logger(__name__)


def open_place(address: str | Path) -> Place:
    """Return the folder, or the address that fsspec opens; file:// is a folder.

    Raises:
        ConfigurationError: a protocol that cannot be used.
    """
    text = str(address)
    if text.startswith("file://"):
        return Folder(Path(text.removeprefix("file://")))
    return Remote(text) if "://" in text else Folder(Path(address))


class CheckpointStore:
    """The checkpoints at one place.

    Args:
        place: folder or fsspec address; or a `Place`.
        keep_last: how many of the newest stay, besides the best; None keeps all.
        wait_seconds: how long a write may take before it counts as failed.

    Raises:
        ConfigurationError: an address that cannot be used.
    """

    def __init__(
        self, place: str | Path | Place, keep_last: int | None = None, *, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self.place = place if isinstance(place, Place) else open_place(place)
        self._keep_last = keep_last
        self._wait_seconds = wait_seconds
        self._snapshot = Snapshot()
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None
        self._finished: list[str] = []

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, Any],
        *,
        best: Mapping[str, Any] | None = None,
        background: bool = True,
    ) -> str:
        """Write the checkpoint of `step`, which replaces an earlier one of that step; return its path or address.

        In the background the tensors are copied before this returns, and may move then; where the memory for the copy
        is not there, they are written before this returns. A write that is still under way is awaited first. What goes
        wrong in the background is raised by the next call of `save`, `finished` or `finish`.

        Args:
            step: committed steps.
            tensors: on any device; tied ones are written once per name.
            metadata: JSON.
            best: if these weights are the best so far, by what: `{"step", "metric", "value"}`. They are then kept until
                there are better ones, and best.json names them.
            background: whether to return before it is written.

        Raises:
            CheckpointError: this checkpoint or the one before was refused; the others are as they were.
        """
        self._await()
        self._raise()
        path = self.place.path(step)
        metadata = metadata_copy(path, metadata)
        missing = self._snapshot.missing_bytes(tensors) if background else 0
        if missing and missing > free_memory(torch.device("cpu")):
            _log.warning(
                "checkpoint_in_foreground", reason=f"a copy needs {missing} bytes of memory more than are free"
            )
            background = False
        if not background:
            self._write(step, tensors, metadata, best)
            return path
        copies = self._snapshot.take(tensors)
        self._writing = threading.Thread(
            target=self._write_behind, args=(step, copies, metadata, best), name="checkpoint", daemon=True
        )
        self._writing.start()
        return path

    def finished(self) -> list[str]:
        """Return what has become complete since the last call, without waiting.

        Raises:
            CheckpointError: a checkpoint could not be written.
        """
        self._raise()
        done, self._finished = self._finished, []
        return done

    def finish(self) -> list[str]:
        """Wait for the write that is under way; then as `finished`.

        Raises:
            CheckpointError: a checkpoint could not be written, or the write does not end.
        """
        self._await()
        return self.finished()

    def close(self) -> None:
        """Wait for the write that is under way, and log what went wrong: the caller is leaving for another reason."""
        try:
            self.finish()
        except CheckpointError as error:
            _log.error("checkpoint_not_written", reason=str(error))

    def latest(self) -> int | None:
        """Return the newest step that has a checkpoint, sound or not."""
        return max(self.place.steps(), default=None)

    def load(self) -> Checkpoint | None:
        """Return the newest checkpoint that is sound, None if there is none at all.

        One that is damaged is passed over, with a warning that names it and the steps to be done again.

        Raises:
            CheckpointError: all are damaged, or the newest is of another format or cannot be read now.
        """
        self.place.clean()
        for _ in range(MAX_LISTINGS):
            steps = self.place.steps()
            damaged: list[str] = []
            for step in reversed(steps):
                try:
                    checkpoint = self.place.read(step)
                except DamagedError as error:
                    if step not in self.place.steps():
                        break  # It was removed while it was read: there is a newer one.
                    _log.warning("checkpoint_damaged", checkpoint=self.place.path(step), reason=str(error))
                    damaged.append(str(error))
                else:
                    if damaged:
                        _log.warning(
                            "resuming_from_an_older_checkpoint",
                            checkpoint=checkpoint.path,
                            steps_done_again=steps[-1] - step,
                        )
                    return checkpoint
            else:
                if not damaged:
                    return None
                raise CheckpointError(
                    f"no checkpoint in {self.place.address} is sound: {'; '.join(damaged)}. Bring one back from a "
                    "copy, or remove them all to start anew"
                )
        raise CheckpointError(f"the checkpoints in {self.place.address} are removed faster than they can be read")

    def best(self) -> dict[str, Any] | None:
        """Return what best.json says: step, metric, value, checkpoint; None where it is absent or damaged."""
        text = self.place.read_small(BEST_FILE)
        try:
            content = dict(json.loads(text)) if text is not None else None
            if content is not None:
                return {**content, "step": int(content["step"]), "value": float(content["value"])}
        except (ValueError, KeyError, TypeError):
            _log.warning("best_json_damaged", path=f"{self.place.address}/{BEST_FILE}")
        return None

    def load_best(self) -> Checkpoint | None:
        """Return the best checkpoint, None if there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        best = self.best()
        return None if best is None else self.place.read(best["step"])

    def mend_best(self, metric: str) -> dict[str, Any] | None:
        """Let best.json name the best of the sound checkpoints, as a kill or damage may have come between; return it.

        Each checkpoint says itself if it was the best so far, and by what.
        """
        named = self.best()
        found: list[dict[str, Any]] = []
        for step in self.place.steps():
            try:
                best = self.place.state(step).best
            except CheckpointError:
                continue
            if best is not None and best.get("metric") == metric:
                found.append(best)
        lowest = min(found, key=lambda best: (best["value"], best["step"]), default=None)
        if lowest is not None and (named is None or named["step"] != lowest["step"]):
            self._write_best(lowest)
        return lowest

    def _write_behind(
        self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], best: Mapping[str, Any] | None
    ) -> None:
        try:
            self._write(step, tensors, metadata, best)
        except BaseException as error:  # noqa: BLE001 - raised again where the run can hear it
            self._error = error

    def _write(
        self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], best: Mapping[str, Any] | None
    ) -> None:
        refuse_useless(step, tensors)
        self.place.write(step, tensors, metadata, best)
        if best is not None:
            self._write_best(best)
        self._prune(step)
        self._finished.append(self.place.path(step))

    def _write_best(self, best: Mapping[str, Any]) -> None:
        content = {**best, "checkpoint": folder_name(best["step"])}
        self.place.write_small(BEST_FILE, json.dumps(content, indent=2) + "\n")

    def _prune(self, step: int) -> None:
        """Remove all but the newest up to `step`, and the best.

        Those of later steps are of a run that went back, or damaged: they must not displace what is sound, and are
        replaced as their steps are done again. One that cannot be removed stays: a run must not end because of it.
        """
        if self._keep_last is None:
            return
        best = self.best()
        for old in [s for s in self.place.steps() if s <= step][: -max(self._keep_last, 1)]:
            if best is None or old != best["step"]:
                self.place.remove(old)

    def _await(self) -> None:
        if self._writing is None:
            return
        self._writing.join(self._wait_seconds)
        if self._writing.is_alive():
            raise CheckpointError(
                f"a checkpoint is being written to {self.place.address} for more than {self._wait_seconds:g} s. See "
                "that it can be reached, and resume; the previous checkpoints are as they were"
            )
        self._writing = None

    def _raise(self) -> None:
        error, self._error = self._error, None
        if isinstance(error, CheckpointError):
            raise error
        if error is not None:
            raise CheckpointError(f"a checkpoint was not written to {self.place.address}: {error!r}") from error
