"""Values by key, of which the last used are kept. Knows nothing of what they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Values by key, of which the least recently used go when those that are kept weigh too much."""

    def __init__(
        self, limit: int, weigh: Callable[[Value], int], let_go: Callable[[Value], None] | None = None
    ) -> None:
        self._limit = limit
        self._weigh = weigh
        self._let_go = let_go
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._weight = 0

    def get(self, key: Hashable) -> Value | None:
        """Return a value, which is now the last used; None for none."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value; others may go for it, but not the last one."""
        self._values[key] = value
        self._weight += self._weigh(value)
        while self._weight > self._limit and len(self._values) > 1:
            self.drop(next(iter(self._values)))

    def drop(self, key: Hashable) -> None:
        """Let one go."""
        value = self._values.pop(key, None)
        if value is not None:
            self._weight -= self._weigh(value)
            if self._let_go is not None:
                self._let_go(value)

    def clear(self) -> None:
        """Let all go."""
        for key in list(self._values):
            self.drop(key)
