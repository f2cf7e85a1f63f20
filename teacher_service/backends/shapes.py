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
from typing import Protocol

_SHORTEST_WIDTH = 16


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
    """All rows in one rectangle, as wide as the longest."""

    def passes(self, lengths: SequenceOf[int]) -> Iterator[Pass]:
        """Yield the one pass."""
        yield Pass(tuple(range(len(lengths))), len(lengths), max(lengths))


@dataclass(frozen=True, slots=True)
class FixedShapes:
    """Rows of like length, in rectangles that have `pass_tokens` whatever is in them: empty rows fill them up.

    A width is a power of two or the middle of two, so that at most a third is padding, and never above `max_width`,
    the longest row that there can be. Where `pass_tokens` is 1, each row is a pass by itself, without padding.
    """

    pass_tokens: int
    max_width: int

    def passes(self, lengths: SequenceOf[int]) -> Iterator[Pass]:
        """Yield passes by rising width, the rows in their order."""
        by_width: dict[int, list[int]] = defaultdict(list)
        for row, length in enumerate(lengths):
            by_width[self._width(length)].append(row)
        for width, rows in sorted(by_width.items()):
            height = max(1, self.pass_tokens // width)
            for start in range(0, len(rows), height):
                yield Pass(tuple(rows[start : start + height]), height, width)

    def _width(self, length: int) -> int:
        if self.pass_tokens == 1:
            return length
        width = _SHORTEST_WIDTH
        while width < length:
            # 16, 24, 32, 48, 64, ...: a power of two has one bit set, a middle two.
            width += width // 2 if width.bit_count() == 1 else width // 3
        return min(width, self.max_width)
