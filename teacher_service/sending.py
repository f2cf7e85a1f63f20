"""Sends what is large past the event loop, so that other threads run while the system copies.

uvloop writes with the interpreter held, a third of a millisecond for each megabyte. Knows nothing of HTTP.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from stillhouse.answer_messages import Buffer
from stillhouse.chunks import left_of

# What the system takes at once.
_MOST_PARTS = 512


def socket_of(transport: Any) -> socket.socket:
    """Return a socket of a transport's connection that may be written to; whoever has it closes it."""
    return socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))


def send_at_once(connection: socket.socket, parts: Sequence[Buffer]) -> Sequence[Buffer]:
    """Send what a socket that does not block takes at once; return the rest, which is the transport's to send."""
    try:
        sent = connection.sendmsg(parts[:_MOST_PARTS])
    except OSError:
        return parts  # it is full; or broken, which the transport finds by itself
    return left_of(parts, sent)
