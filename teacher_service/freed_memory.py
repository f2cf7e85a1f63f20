"""What becomes of memory that is freed: kept for the next answer, up to a bound.

By default the C library gives an answer's megabytes back to the system as soon as it has left, and each page of the
next one is then asked for and cleared anew: two fifths of the processor time of an answer out of the cache.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

KEPT_BYTES: Final = 256 * 2**20
"""The most that is kept at the end of the heap: some dozen answers under way."""
LARGEST_KEPT_BYTES: Final = 32 * 2**20
"""Larger pieces are asked of the system and given back: what loading a model leaves."""

_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Choose so for this process, unless the environment says anything of it; return whether that was done.

    A C library other than glibc has its own ways, and is left to them.
    """
    if any(name in os.environ for name in _VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
