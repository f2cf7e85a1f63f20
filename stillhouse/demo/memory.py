"""How much memory a tree of processes holds, shared pages counted once (PSS)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil

GIB = 2**30


def tree_memory_bytes() -> int:
    """Return the memory of this process and all its descendants, in bytes, now."""
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += int(getattr(memory, "pss", memory.uss))
    return total


@dataclass(slots=True)
class MemoryPeak:
    """Remembers the largest of the samples taken."""

    bytes: int = 0

    def sample(self) -> None:
        """Look once."""
        self.bytes = max(self.bytes, tree_memory_bytes())

    @property
    def gib(self) -> float:
        """The peak in GiB."""
        return self.bytes / GIB
