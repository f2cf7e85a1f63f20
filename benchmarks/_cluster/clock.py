"""Servers of a simulation that take what they are given in order, and know how long they were busy."""

from __future__ import annotations

import simpy

Events = simpy.events.ProcessGenerator
"""What a simulated process is: a generator of the events that it waits for."""


class Line:
    """Work in the order in which it came, one after the other: a core, a network card one way, a model.

    Its queue has no bound and needs no process of its own: when a piece of work ends follows from what came before.
    """

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._free_at = 0.0
        self._taken_seconds = 0.0

    def ends_after(self, seconds: float) -> float:
        """Take on work of so many seconds; return in how many seconds from now it is done."""
        self._free_at = max(self._free_at, self._env.now) + seconds
        self._taken_seconds += seconds
        return self._free_at - self._env.now

    @property
    def waiting_seconds(self) -> float:
        """Work that was taken on and is not done."""
        return max(0.0, self._free_at - self._env.now)

    @property
    def busy_seconds(self) -> float:
        """Of the time until now, how much it worked."""
        return self._taken_seconds - self.waiting_seconds


class Crowd:
    """How many are in a place, and for how long: the N and the R of Little's law, each counted by itself."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._since = 0.0
        self._area = 0.0
        self.present = 0
        self.came = 0
        self.left = 0
        self.stayed_seconds = 0.0

    def enter(self) -> float:
        """Count one more; return what `leave` is to be given."""
        self._move(1)
        self.came += 1
        return self._env.now

    def leave(self, entered: float) -> None:
        """Count one less, who came at `entered`."""
        self._move(-1)
        self.left += 1
        self.stayed_seconds += self._env.now - entered

    @property
    def area(self) -> float:
        """The integral of those present over the time until now, in seconds."""
        return self._area + self.present * (self._env.now - self._since)

    def _move(self, change: int) -> None:
        self._area, self._since = self.area, self._env.now
        self.present += change


class Meeting:
    """Everybody waits until all are there; then a new one begins."""

    def __init__(self, env: simpy.Environment, members: int) -> None:
        self._env = env
        self._members = members
        self._there = 0
        self._all_there = env.event()

    def join(self) -> simpy.Event:
        """Return the event of all being there; whoever comes last makes it happen."""
        self._there += 1
        event = self._all_there
        if self._there == self._members:
            self._there, self._all_there = 0, self._env.event()
            event.succeed()
        return event
