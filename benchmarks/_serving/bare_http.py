"""One connection of HTTP as asyncio and httptools give it, for limits that answer each body and do nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools


class BareHttp(asyncio.Protocol):
    """Gives each body to `take`; `transport` is what the answer is written to."""

    transport: Any
    _body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Take some of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Give the body on."""
        body, self._body = self._body, b""
        self.take(body)

    def take(self, body: bytes) -> None:
        """Answer a body."""
        raise NotImplementedError
