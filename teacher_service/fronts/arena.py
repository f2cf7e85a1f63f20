"""Memory that the engine and one front share: the engine lays an answer's bytes down once, the front reads them there.

One region for each front, as large as it may become from the start and with pages only where bytes were laid: no file,
no name, and gone with the two processes. Which parts are free the engine alone knows. Knows nothing of sockets. Linux
only.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Sequence as SequenceOf

ARENA_BYTES = 256 * 2**20
"""The most that answers on their way to one front may take here; what does not fit goes through the socket."""

# A cache line: parts never share one.
_ALIGNMENT = 64
# Where nothing is left in it, pages beyond these go back to the system.
_KEPT_BYTES = 64 * 2**20


class Arena:
    """The engine's side: takes free parts, lays bytes down in them, and has parts back."""

    def __init__(self, num_bytes: int = ARENA_BYTES) -> None:
        self.num_bytes = num_bytes
        self.descriptor = os.memfd_create("stillhouse-front", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.descriptor, num_bytes)
            self._map = mmap.mmap(self.descriptor, num_bytes)
        except (OSError, ValueError):
            os.close(self.descriptor)
            raise
        # Free parts in order, no two of them side by side: where each starts, and its size.
        self._starts, self._sizes = [0], [num_bytes]
        self._taken: dict[int, int] = {}
        self._reached = 0

    @property
    def taken_bytes(self) -> int:
        """Bytes of the parts that are in use."""
        return sum(self._taken.values())

    def take(self, num_bytes: int) -> int | None:
        """Take a part for so many bytes; return where it starts, None where no free one is large enough."""
        size = _aligned(num_bytes)
        index = next((index for index, free in enumerate(self._sizes) if free >= size), None)
        if index is None or not size:
            return None
        start = self._starts[index]
        if self._sizes[index] == size:
            del self._starts[index], self._sizes[index]
        else:
            self._starts[index] += size
            self._sizes[index] -= size
        self._taken[start] = size
        self._reached = max(self._reached, start + size)
        return start

    def lay(self, start: int, parts: SequenceOf[bytes | memoryview]) -> None:
        """Lay bytes down end to end from there on, within a part that was taken."""
        for part in parts:
            self._map[start : start + len(part)] = part
            start += len(part)

    def give_back(self, start: int) -> None:
        """Take back what `take` has returned; once.

        Raises:
            KeyError: no part starts there.
        """
        size = self._taken.pop(start)
        index = bisect_left(self._starts, start)
        self._starts.insert(index, start)
        self._sizes.insert(index, size)
        for left in (index, index - 1):
            self._join(left)
        if not self._taken and self._reached > _KEPT_BYTES:
            self._map.madvise(mmap.MADV_REMOVE, _KEPT_BYTES, self.num_bytes - _KEPT_BYTES)
            self._reached = _KEPT_BYTES

    def _join(self, left: int) -> None:
        """Make one free part of this and the next, where nothing lies between them."""
        right = left + 1
        if left >= 0 and right < len(self._starts) and self._starts[left] + self._sizes[left] == self._starts[right]:
            self._sizes[left] += self._sizes[right]
            del self._starts[right], self._sizes[right]

    def close(self) -> None:
        """Let go of it; a front that still looks at it keeps it alive."""
        self._map.close()
        os.close(self.descriptor)


class ArenaView:
    """The front's side: looks, and never writes."""

    def __init__(self, descriptor: int) -> None:
        """Look at the region behind a descriptor, which is closed."""
        try:
            self._view = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)

    def views(self, start: int, sizes: SequenceOf[int]) -> list[memoryview]:
        """Return what lies there, one view for each size; good until the engine is told that it may have them back.

        Raises:
            ValueError: beyond the end.
        """
        if start < 0 or min(sizes, default=0) < 0 or start + sum(sizes) > len(self._view):
            raise ValueError(f"{sum(sizes)} bytes from {start} on are beyond the {len(self._view)} that are shared")
        found, at = [], start
        for size in sizes:
            found.append(self._view[at : at + size])
            at += size
        return found


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
