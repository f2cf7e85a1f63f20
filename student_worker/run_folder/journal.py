"""The lines of a run's metrics.jsonl and samples.jsonl, and its result.json.

The worker of rank 0 writes, and which one that is may change at every step. So every worker remembers its last lines,
and one that comes to write first adds what its predecessor was killed before it could write. Two workers that lost each
other may even do the same steps at once, each the first of a group of its own: whoever writes holds the file's lock
from the look at what stands there to the last byte. Written for programs: one JSON object a line.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
from collections import deque
from pathlib import Path
from typing import Any

from stillhouse.errors import CheckpointError
from student_worker.locks import locked

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
RESULT_FILE = "result.json"

REMEMBERED_LINES = 64
"""More than one step ever leaves unwritten: a writer that dies leaves the lines of the step that it had committed."""
TAIL_LINES = 16
"""Of them, those that a newcomer is given with the weights."""
READ_BYTES = 1 << 16
LOCK_SECONDS = 10.0
"""A writer that holds the lock for longer was frozen: the line that it may double later is better than no run."""

_ORDER = {"step": 0, "evaluation": 1}
"""Of the lines of one step: it is evaluated once it is done."""

_FIRST_PLACE = (-1, 0)

Line = dict[str, Any]


class Journal:
    """Appends lines to a file of a run's folder, each of them once.

    A line is named by its step and its `event` (where it has one). Whoever begins to write drops the lines of later
    steps, which are done again, and puts those that it remembers in the place of lines of the same name.
    """

    def __init__(self, output_dir: Path, name: str = METRICS_FILE) -> None:
        self.path = output_dir / name
        self._lines: deque[Line] = deque(maxlen=REMEMBERED_LINES)
        self._pending: list[Line] = []
        self._is_writing = False
        self._size = 0
        self._last = _FIRST_PLACE  # of the lines that were there when this worker wrote last

    def add(self, *, step: int, event: str | None = None, **fields: Any) -> None:
        """Remember a line; a number that is not finite, which JSON has no word for, becomes null."""
        named = {} if event is None else {"event": event}
        line = {**named, "step": step, **{key: _finite(value) for key, value in fields.items()}}
        self._lines.append(line)
        self._pending.append(line)

    def flush(self, *, step: int, writes: bool, sync: bool = False) -> None:
        """Write what was added, if it is this worker that writes.

        Args:
            step: the committed steps: later ones that stand in the file are done again.
            writes: whether this worker has rank 0.
            sync: bring it to the disk, as before a checkpoint, which must not be ahead of its lines.

        Raises:
            CheckpointError: it could not be written.
        """
        pending, self._pending = self._pending, []
        if not writes:
            self._is_writing = False
            return
        try:
            with locked(self.path, LOCK_SECONDS):
                if not self._is_writing:
                    self._merge(drop_after=step)
                elif self._size != self._file_size() or (pending and _place(pending[0]) <= self._last):
                    # Somebody else has written: this worker was taken for dead, and the later lines are right. Where
                    # they are of steps that this one has yet to do, its own belong before them.
                    self._merge(drop_after=None)
                else:
                    self._append(pending)
                if sync:
                    with self.path.open("rb") as file:
                        os.fsync(file.fileno())
        except OSError as error:
            raise _not_written(self.path, error) from error
        self._is_writing = True

    def read(self) -> list[Line]:
        """Return what is there, without a line that a kill cut short."""
        return _parse(self.path.read_bytes()) if self.path.exists() else []

    def progress(self) -> list[Line]:
        """Return the newest lines, for a newcomer or a checkpoint."""
        return list(self._lines)[-TAIL_LINES:]

    def restore(self, progress: list[Line]) -> None:
        """Take over what `progress` returned: this worker's own lines are of steps that are another's now."""
        self._lines = deque(progress, maxlen=REMEMBERED_LINES)
        self._pending = []
        self._is_writing = False

    def _merge(self, drop_after: int | None) -> None:
        ours = {_name(line): line for line in self._lines}
        if not ours and drop_after is None:
            return
        offset, tail = self._tail(min([line["step"] for line in ours.values()] + [drop_after or 0]))
        theirs = {_name(line): line for line in _parse(tail) if drop_after is None or line["step"] <= drop_after}
        merged = sorted({**theirs, **ours}.values(), key=_place)
        self._last = _place(merged[-1]) if merged else _FIRST_PLACE
        text = "".join(_as_text(line) for line in merged).encode()
        if text.startswith(tail):
            self._append_bytes(text[len(tail) :], offset + len(tail))
        else:
            self._replace_from(offset, text)

    def _tail(self, step: int) -> tuple[int, bytes]:
        """Return the end of the file from some line on whose step is before `step`, and where it begins."""
        size = self._file_size()
        length = 0
        while length < size:
            length = min(size, max(READ_BYTES, 4 * length))
            with self.path.open("rb") as file:
                file.seek(size - length)
                tail = file.read(length)
            if length == size:
                return 0, tail
            cut = tail.find(b"\n") + 1
            first = _parse(tail[cut : tail.find(b"\n", cut) + 1])
            if first and first[0]["step"] < step:
                return size - length + cut, tail[cut:]
        return 0, b""

    def _append(self, lines: list[Line]) -> None:
        self._last = max([self._last, *map(_place, lines)])
        self._append_bytes("".join(_as_text(line) for line in lines).encode(), self._size)

    def _append_bytes(self, text: bytes, size: int) -> None:
        if text:
            with self.path.open("ab") as file:
                file.write(text)
        self._size = size + len(text)

    def _replace_from(self, offset: int, text: bytes) -> None:
        aside = _aside(self.path)
        try:
            with aside.open("wb") as file, self.path.open("rb") as source:
                shutil.copyfileobj(source, file)
                file.truncate(offset)
                file.seek(offset)
                file.write(text)
            aside.replace(self.path)
        finally:
            aside.unlink(missing_ok=True)
        self._size = offset + len(text)

    def _file_size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0


def write_result(output_dir: Path, result: dict[str, Any]) -> None:
    """Write result.json, complete or not at all."""
    write_whole(output_dir / RESULT_FILE, json.dumps(result, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a small text file, complete or not at all.

    Raises:
        CheckpointError: it could not be written.
    """
    aside = _aside(path)
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise _not_written(path, error) from error


def read_result(output_dir: Path) -> dict[str, Any] | None:
    """Return what result.json says, None where it is not there or cannot be read."""
    try:
        return dict(json.loads((output_dir / RESULT_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _aside(path: Path) -> Path:
    # Not the process id: workers in containers share the folder, and often that number too.
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _name(line: Line) -> tuple[int, str]:
    return line["step"], line.get("event", "")


def _place(line: Line) -> tuple[int, int]:
    """Return what lines are sorted by."""
    return line["step"], _ORDER.get(_name(line)[1], 0)


def _as_text(line: Line) -> str:
    return json.dumps(line) + "\n"


def _parse(text: bytes) -> list[Line]:
    lines = []
    for part in text.splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(part)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def _not_written(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} could not be written: {error.strerror or error}. Free space there and resume, or name another folder"
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
