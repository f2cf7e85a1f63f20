"""Layer numbers as people write them: `0-9,11,13-29`. Knows nothing of models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from stillhouse.errors import ConfigurationError

MAX_LAYER = 100_000
"""No model has so many; a mistyped range must not fill the memory before the model could refuse it."""

_RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")


def parse_layers(text: str) -> tuple[int, ...]:
    """Read layer numbers such as `0-9,11,13-29` (ranges include both ends).

    Raises:
        ConfigurationError: not of that form, not strictly increasing, or numbers that no model has.
    """
    layers: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ConfigurationError(
                f"keep_layers: {part.strip()!r} is no layer or range; write for example 0-9,11,13-29"
            )
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise ConfigurationError(f"keep_layers: the range {part.strip()!r} runs backwards; write {last}-{first}")
        if last > MAX_LAYER:
            raise ConfigurationError(f"keep_layers: {part.strip()!r} names a layer above {MAX_LAYER}; mistyped?")
        layers.extend(range(first, last + 1))
    return check_layers(layers)


def check_layers(layers: Iterable[int]) -> tuple[int, ...]:
    """Return the layers as a tuple.

    Raises:
        ConfigurationError: none, or not strictly increasing from 0 upwards.
    """
    kept = tuple(layers)
    if not kept:
        raise ConfigurationError("keep_layers names no layer; name at least one, for example 0-9")
    if kept[0] < 0 or any(b <= a for a, b in pairwise(kept)):
        raise ConfigurationError(f"keep_layers must rise strictly from 0 upwards; got {list(kept)}")
    return kept
