"""The lines of a run's metrics.jsonl and its result.json.

The worker of rank 0 writes; which one that is may change from step to step, so each line is one append. Written for
programs: one JSON object a line, `event` says what it is.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from stillhouse.errors import CheckpointError

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"


class Journal:
    """Appends to metrics.jsonl in a run's folder.

    A writer's first line drops those of its step and later ones: a run that goes on from a checkpoint does these
    steps again. (Only then: who writes first may be a newcomer, and not the worker that read the checkpoint.)
    """

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir / METRICS_FILE
        self._has_written = False

    def write(self, event: str, *, step: int, **fields: Any) -> None:
        """Append one line; a number that is not finite, which JSON has no word for, becomes null.

        Raises:
            CheckpointError: it could not be written.
        """
        if not self._has_written:
            self._drop_from(step)
            self._has_written = True
        line = json.dumps({"event": event, "step": step, **{key: _finite(value) for key, value in fields.items()}})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise _not_written(self.path, error) from error

    def read(self) -> list[dict[str, Any]]:
        """Return what is there, without a line that a kill cut short."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def _drop_from(self, step: int) -> None:
        kept = [record for record in self.read() if record["step"] < step]
        if self.path.exists():
            write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))


def write_result(output_dir: Path, result: dict[str, Any]) -> None:
    """Write result.json, complete or not at all."""
    write_whole(output_dir / RESULT_FILE, json.dumps(result, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a small text file, complete or not at all.

    Raises:
        CheckpointError: it could not be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} could not be written: {error.strerror or error}. Free space there and resume, or name another folder"
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
