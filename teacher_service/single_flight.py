"""One computation per key at a time: whoever asks for the same thing meanwhile waits for the same answer.

A computation goes on as long as anybody waits for it, and is cancelled when the last one has left. Knows nothing of
what is computed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Flight(Generic[V]):
    def __init__(self) -> None:
        self.result: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self.waiting = 0


class Ticket(Generic[V]):
    """One caller's share in a computation. Whoever holds one calls `leave` in the end, whatever happens."""

    def __init__(self, flight: _Flight[V], *, is_first: bool) -> None:
        self._flight = flight
        self.is_first = is_first
        """Whether the holder must see to it that `result` is set."""

    @property
    def result(self) -> asyncio.Future[V]:
        """What the computation sets; cancelled when nobody waits any more."""
        return self._flight.result

    async def wait(self) -> V:
        """Wait for the result; to be cancelled here cancels nobody else."""
        result = self._flight.result
        # Those of one batch are there together: only the first of them is waited for.
        return result.result() if result.done() else await asyncio.shield(result)

    def leave(self) -> None:
        """Give the share back."""
        self._flight.waiting -= 1
        if self._flight.waiting == 0:
            self._flight.result.cancel()  # does nothing to a result that is there


class SingleFlight(Generic[K, V]):
    """The computations in flight in this process; for one event loop."""

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[V]] = {}

    def board(self, key: K) -> Ticket[V]:
        """Take a share in the computation of `key`, the first in a new one where none is in flight."""
        flight = self._flights.get(key)
        is_first = flight is None or flight.result.done()
        if flight is None or is_first:
            flight = self._flights[key] = _Flight()
            flight.result.add_done_callback(lambda _: self._land(key, flight))
        flight.waiting += 1
        return Ticket(flight, is_first=is_first)

    def _land(self, key: K, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.result.cancelled():
            flight.result.exception()  # seen: the last to wait may have left on another's failure
