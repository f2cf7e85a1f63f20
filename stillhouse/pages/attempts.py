"""How often wrong tokens may be tried at a form: so many from one address, then one now and then.

Knows nothing of tokens or forms.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

BURST = 10
SECONDS_EACH = 6.0
"""After the burst, one more for so many seconds of patience."""

# Addresses are remembered only while they matter; the least recent is forgotten first.
_MOST_ADDRESSES = 1024


class Attempts:
    """Counts the wrong ones of each address; for one thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, address: str) -> float:
        """Return how long this address has to wait before it may try again; 0: it may."""
        return max(0.0, (self._left_over(address) - BURST + 1) * SECONDS_EACH)

    def failed(self, address: str) -> None:
        """Count a wrong one."""
        self._spent[address] = (min(self._left_over(address) + 1, BURST + 1), self._now())
        self._spent.move_to_end(address)
        while len(self._spent) > _MOST_ADDRESSES:
            self._spent.popitem(last=False)

    def _left_over(self, address: str) -> float:
        """Return the failures of an address that time has not made up for."""
        count, since = self._spent.get(address, (0.0, -math.inf))
        return max(0.0, count - (self._now() - since) / SECONDS_EACH)
