"""How far a worker is, told to the launcher that watches it: the number of its last committed step, in a file.

So a launcher can tell a worker that is killed now and then, in a run of weeks, from one that always dies at one place.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

VARIABLE = "STILLHOUSE_PROGRESS_FILE"
"""Set by the launcher; without it nothing is written."""


def report_progress(step: int) -> None:
    """Write down that so many steps are committed; a disk that refuses is no reason to stop."""
    if path := os.environ.get(VARIABLE):
        with contextlib.suppress(OSError):
            Path(path).write_text(str(step), encoding="ascii")


def read_progress(path: Path) -> int:
    """Return the last step that a worker reported, -1 for none."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return -1
