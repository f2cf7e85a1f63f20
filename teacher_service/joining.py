"""Questions that come while others are on their way go together: one round trip for all of them.

The first is not held up, so that a lone caller waits for nobody; under load each round trip carries what has come since
the last one left. Knows nothing of Redis, nor of what is asked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as SequenceOf
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

Ask = Callable[[SequenceOf[K], int], Awaitable[SequenceOf[V] | None]]
"""Asks about keys whose values have about so many bytes together: a value for each, None in place of all."""


class _Question(Generic[K, V]):
    def __init__(self, keys: SequenceOf[K], num_bytes: int) -> None:
        self.keys = keys
        self.num_bytes = num_bytes
        self.answer: asyncio.Future[SequenceOf[V] | None] = asyncio.get_running_loop().create_future()


class Joined(Generic[K, V]):
    """Asks for many callers at once; for one event loop.

    Args:
        ask: one round trip. What it raises, every caller in it is given.
        max_bytes: of the values that one round trip should bring; a question of more goes alone.
        max_trips: so many are under way at once.
    """

    def __init__(self, ask: Ask[K, V], *, max_bytes: int, max_trips: int) -> None:
        self._ask = ask
        self._max_bytes = max_bytes
        self._max_trips = max_trips
        self._waiting: deque[_Question[K, V]] = deque()
        self._num_trips = 0
        self._trips: set[asyncio.Task[None]] = set()  # the event loop itself forgets tasks that nobody holds

    async def ask(self, keys: SequenceOf[K], num_bytes: int) -> SequenceOf[V] | None:
        """Ask about keys whose values have about so many bytes together; may be cancelled at any time."""
        question = _Question[K, V](keys, num_bytes)
        self._waiting.append(question)
        if self._num_trips < self._max_trips:
            self._num_trips += 1
            trip = asyncio.create_task(self._travel())
            self._trips.add(trip)
            trip.add_done_callback(self._trips.discard)
        return await question.answer

    async def _travel(self) -> None:
        try:
            while group := self._next_group():
                await self._answer(group)
        finally:
            # With no await since the last look at who waits: whoever comes now begins a trip of their own.
            self._num_trips -= 1

    async def _answer(self, group: SequenceOf[_Question[K, V]]) -> None:
        keys = [key for question in group for key in question.keys]
        # Those who have left meanwhile are done.
        try:
            values = await self._ask(keys, sum(question.num_bytes for question in group))
        except Exception as error:  # noqa: BLE001 - each caller is given it
            for question in group:
                if not question.answer.done():
                    question.answer.set_exception(error)
            return
        start = 0
        for question in group:
            end = start + len(question.keys)
            if not question.answer.done():
                question.answer.set_result(None if values is None else values[start:end])
            start = end

    def _next_group(self) -> list[_Question[K, V]]:
        group: list[_Question[K, V]] = []
        num_bytes = 0
        while self._waiting and (not group or num_bytes + self._waiting[0].num_bytes <= self._max_bytes):
            question = self._waiting.popleft()
            if not question.answer.done():
                group.append(question)
                num_bytes += question.num_bytes
        return group
