"""One plain port for two protocols: health over gRPC, and health and metrics over HTTP/1.1.

Kubernetes asks its gRPC probe and its HTTP probe at a port that carries no TLS, and both are given one here. The first
bytes of a connection tell which it speaks, and it is joined to the server behind: each listens on a Unix socket in a
folder that this user alone can enter. Knows nothing of what either answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

# What every HTTP/2 connection begins with (RFC 9113, section 3.4), as far as no HTTP/1 request does.
_HTTP2_PREFACE = b"PRI * HTTP/2.0"

# Probes and scrapers of one pod; whoever else comes waits in the backlog or is sent away.
_MAX_CONNECTIONS = 128
_FIRST_BYTES_SECONDS = 5.0
# The longest silence: longer than any probe's period, so that those that keep their connection may.
_SILENCE_SECONDS = 120.0
_PIECE_BYTES = 64 * 1024


class PlainPort:
    """The port, and what passes through it; for one event loop."""

    def __init__(self, grpc_socket: Path, http_socket: Path) -> None:
        self._grpc_socket = grpc_socket
        self._http_socket = http_socket
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self, bound: socket.socket) -> None:
        """Listen on a socket that is bound already."""
        self._server = await asyncio.start_server(self._begin, sock=bound)

    async def close(self) -> None:
        """Accept nothing new, and drop what is open."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a server's callback runs in one
        if len(self._connections) >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await self._join(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # a caller that says nothing or has gone is owed nothing
        except asyncio.CancelledError:
            # Only `close` cancels; nobody awaits this task for anything else.
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_FIRST_BYTES_SECONDS):
            first = await _first_bytes(reader)
        speaks_http2 = first == _HTTP2_PREFACE
        behind = self._grpc_socket if speaks_http2 else self._http_socket
        inner_reader, inner_writer = await asyncio.open_unix_connection(behind)
        try:
            inner_writer.write(first)
            async with asyncio.TaskGroup() as both:
                there = both.create_task(_carry(reader, inner_writer))
                back = both.create_task(_carry(inner_reader, writer))
                await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
                if back.done():
                    # The server has closed: what the caller may still say is of no use.
                    there.cancel()
        except* OSError:
            pass  # one of the two has gone; so goes the other
        finally:
            inner_writer.transport.abort()


async def _first_bytes(reader: asyncio.StreamReader) -> bytes:
    """Read until the bytes are HTTP/2's preface, or cannot become it any more."""
    first = b""
    while len(first) < len(_HTTP2_PREFACE) and _HTTP2_PREFACE.startswith(first):
        more = await reader.read(len(_HTTP2_PREFACE) - len(first))
        if not more:
            raise asyncio.IncompleteReadError(first, len(_HTTP2_PREFACE))
        first += more
    return first


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes until there are no more, never holding more than a piece that the other side has not taken."""
    while True:
        async with asyncio.timeout(_SILENCE_SECONDS):
            piece = await reader.read(_PIECE_BYTES)
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
