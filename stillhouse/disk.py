"""Space on a disk, and sizes as people read them. In bytes."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


def free_disk(folder: Path) -> int:
    """Return how much may still be written where a folder is, or is to be made."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return shutil.disk_usage(there).free


def folder_bytes(folder: Path) -> int:
    """Return what the files below a folder take; 0 where there is none."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gone in the meantime
            total += path.stat().st_size if path.is_file() else 0
    return total


def shown(num_bytes: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} bytes" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
