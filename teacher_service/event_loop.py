"""The event loop that a process of the service runs in."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import uvloop

T = TypeVar("T")


def run(main: Coroutine[None, None, T]) -> T:
    """Run until `main` has ended, as `asyncio.run`, in a loop that takes less of the processor for each request."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
