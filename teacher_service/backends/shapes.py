"""Which rectangles go through a model: one that fits the batch, or a few fixed ones that follow from each row alone.

The low bits of a matrix product depend on its shape. With `FittedShape` an answer therefore depends a little on what
shared its batch; with `FixedShapes` on nothing but its own length. Knows nothing of models. Shapes: B batch rows, L
tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import count
from typing import Protocol

_SHORTEST_EXPONENT = 4  # 16 tokens: narrower rows would gain little over padding


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of the model: the rows in it, by index, and the rectangle that they are padded to."""

    rows: tuple[int, ...]
    height: int
    width: int


class Shapes(Protocol):
    """How rows become passes."""

    def passes(self, lengths: SequenceOf[int]) -> Iterator[Pass]:
        """Yield passes in which each row stands once, given the rows' lengths in tokens."""


@dataclass(frozen=True, slots=True)
class FittedShape:
    """All rows in one rectangle, as wide as the longest; a row longer than `longest_shared` by itself."""

    longest_shared: int | None = None

    def passes(self, lengths: SequenceOf[int]) -> Iterator[Pass]:
        """Yield the one pass, and those of single rows."""
        most = max(lengths) if self.longest_shared is None else self.longest_shared
        shared = tuple(row for row, length in enumerate(lengths) if length <= most)
        if shared:
            yield Pass(shared, len(shared), max(lengths[row] for row in shared))
        yield from (Pass((row,), 1, length) for row, length in enumerate(lengths) if length > most)


@dataclass(frozen=True, slots=True)
class FixedShapes:
    """Short rows in rectangles that have `pass_tokens` whatever is in them, and each longer row by itself.

    A short row is padded to a power of two or to the middle of two, so that at most a third is padding, and never above
    `max_width`, the longest row that there can be; empty rows fill the rectangle up. A row of which two do not fit is a
    pass of its own, without padding; so is every row where `pass_tokens` is 1.
    """

    pass_tokens: int
    max_width: int

    def passes(self, lengths: SequenceOf[int]) -> Iterator[Pass]:
        """Yield passes by rising width, the rows in their order."""
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, length in enumerate(lengths):
            by_shape[self._shape(length)].append(row)
        for (width, height), rows in sorted(by_shape.items()):
            for start in range(0, len(rows), height):
                yield Pass(tuple(rows[start : start + height]), height, width)

    def shared(self) -> Iterator[Pass]:
        """Yield every shape that several rows share, full."""
        for width, height in dict.fromkeys(map(self._shape, range(1, min(self.pass_tokens // 2, self.max_width) + 1))):
            if height > 1:
                yield Pass(tuple(range(height)), height, width)

    def _shape(self, length: int) -> tuple[int, int]:
        width = max(length, min(next(width for width in _widths() if width >= length), self.max_width))
        height = self.pass_tokens // width
        return (width, height) if height > 1 else (length, 1)


def _widths() -> Iterator[int]:
    """Yield 16, 24, 32, 48, 64, ...: each a half or a third wider than the one before."""
    for exponent in count(_SHORTEST_EXPONENT):
        yield 2**exponent
        yield 3 * 2 ** (exponent - 1)
