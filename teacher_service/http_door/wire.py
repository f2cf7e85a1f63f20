"""What the server beneath tells a request of its connection, and does for it, beyond what ASGI knows.

A caller that goes away is told of without a task that waits for it, and an answer of many parts leaves in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

from starlette.types import Scope

from stillhouse.answer_messages import Buffer

_WIRE = "stillhouse.wire"


class Wire(Protocol):
    """The connection that a request came by."""

    @property
    def watchers(self) -> set[Callable[[], None]]:
        """What is called when it is lost while the request is under way."""

    def hold_head(self) -> None:
        """Keep the head of the answer, which is sent next, until `write` is called."""

    async def write(self, parts: Sequence[Buffer]) -> None:
        """Send the body, whose length the head has told, as soon as the caller has room for it."""


def set_wire(scope: Scope, wire: Wire) -> None:
    """Say by which connection a request has come."""
    scope[_WIRE] = wire


def wire_of(scope: Scope) -> Wire:
    """Return the connection that a request has come by."""
    return cast("Wire", scope[_WIRE])
