"""Cuts a row of things with sizes into runs of neighbours that are handled at once.

Knows nothing of what the sizes count: rows, bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf


def runs_within(sizes: SequenceOf[int], most: int) -> Iterator[slice]:
    """Yield runs of neighbours of at most `most` together, each as long as it can be; a larger one is alone."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            yield slice(start, index)
            start, total = index, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))
