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
# From here on it is worth the while to let others run while the system copies.
_LARGE_BYTES = 2**18


class Sender:
    """Writes to one connection; what its transport encrypts, through that alone."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._is_plain = transport.get_extra_info("sslcontext") is None
        # The transport's own, once something large has been sent.
        self._socket: socket.socket | None = None

    def write(self, parts: Sequence[Buffer]) -> None:
        """Send parts, one behind the other, and behind what waits already."""
        is_worth_it = self._is_plain and sum(map(len, parts)) > _LARGE_BYTES
        rest = self._send_now(parts) if is_worth_it and not self._transport.get_write_buffer_size() else parts
        if rest:
            self._transport.writelines(rest)

    def close(self) -> None:
        """Give back what this holds; the transport is its owner's to close."""
        if self._socket is not None:
            self._socket.close()

    def _send_now(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """Send what the socket takes at once; return the rest, which is the transport's to send."""
        if self._socket is None:
            self._socket = socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))
        try:
            sent = self._socket.sendmsg(parts[:_MOST_PARTS])
        except OSError:
            return parts  # it is full; or broken, which the transport finds by itself
        return left_of(parts, sent)
