"""How often Python looks for objects that only hold each other."""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 10_000
"""After so many new ones that live, rather than after 700: a request makes hundreds, all of which go by themselves when
it is answered, and looking for them took a fifth of the processor's time of a small one. What does need looking for,
what a failed call leaves, is still found within some dozens of calls.
"""


def look_for_garbage_seldom() -> None:
    """Choose so for this process."""
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
