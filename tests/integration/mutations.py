"""Right bytes made wrong, and a watch over the memory of the process meanwhile."""

from __future__ import annotations

import os
import random

import psutil

NUM_REQUESTS = max(200, int(10_000 * float(os.environ.get("STILLHOUSE_TEST_COUNT", "1"))))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Change, drop, double, insert or cut off some of the bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed) + 1)
        size = rng.choice((1, 1, 2, 4, 16))
        match rng.randrange(6):
            case 0:
                changed[at : at + size] = rng.randbytes(size)
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = changed[max(0, at - size) : at]
            case 3:
                changed[at:at] = bytes([rng.choice((0x00, 0x7F, 0x80, 0xFF))]) * size
            case 4:
                changed = changed[:at]
            case _ if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case _:
                changed += rng.randbytes(size)
    return bytes(changed)


class MemoryWatch:
    """How far the memory of this process has grown at most, in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self.growth = 0

    def look(self) -> None:
        self.growth = max(self.growth, self._process.memory_info().rss - self._before)
