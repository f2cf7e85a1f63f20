"""The HTTP server: uvicorn with bounds on connections, on how long a request may take to arrive, and on unread answers.

uvicorn waits for ever for a request's head, and for ever for a caller that does not read: a few thousand idle sockets
would hold its memory. Knows nothing of routes; they are in `app`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stillhouse.answer_messages import Buffer
from stillhouse.http_forms import PROBLEM_TYPE
from teacher_service.http_door.problems import problem_text
from teacher_service.http_door.wire import set_wire
from teacher_service.sending import Sender

_LISTEN_BACKLOG = 2048

# A request's line and headers come at once from any real client.
_HEAD_SECONDS = 10.0
# How long a connection may stay open between two requests.
_KEEP_ALIVE_SECONDS = 30
# Lines and headers of a request together.
_MAX_HEAD_BYTES = 32 * 1024
# What is handed to the socket before whoever answers waits: large enough that the socket never waits for us.
_WRITE_BUFFER_BYTES = 2**20
_HEAD_TOO_LONG = f"the request's line and headers are over the limit of {_MAX_HEAD_BYTES} bytes"


class HttpServer:
    """One uvicorn server on one socket; for one event loop."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_connections: int,
        send_stall_seconds: float,
        close_seconds: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        config = _Config(
            app,
            http=_BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(close_seconds)),
        )
        config.load()
        # uvicorn would make a context of its own from files; ours takes other certificates when those change.
        config.ssl = tls
        config.max_connections = max_connections
        config.send_stall_seconds = send_stall_seconds
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    def open(self, bound: socket.socket) -> None:
        """Serve on a socket that is bound already."""
        bound.listen(_LISTEN_BACKLOG)
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]), name="http")

    async def close(self) -> None:
        """Accept nothing new and end; answers under way have the time given at the start."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the service has its own, for both doors."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class _Config(uvicorn.Config):
    """uvicorn's settings, and the bounds that it has none for."""

    max_connections: int
    send_stall_seconds: float


class _BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed when nothing comes of it."""

    config: _Config
    _waiting_for_head: asyncio.TimerHandle | None = None
    _waiting_for_reader: asyncio.TimerHandle | None = None
    # Of the head that is coming: bytes as they come, and those of the fields that have come whole.
    _is_in_head = _has_ended_one = False
    _head_bytes = _told_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base
        self.watchers: set[Callable[[], None]] = set()
        self.sender = Sender(transport)
        super().connection_made(transport)
        if len(self.connections) > self.config.max_connections:
            transport.abort()
            return
        transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        self._has_ended_one = False
        super().data_received(data)
        # A field that has not ended yet was told to nobody. Where a request has ended in these bytes, they are its own.
        if self._is_in_head and not self._has_ended_one:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(_HEAD_TOO_LONG)
        self._expect_head()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._head_bytes = self._told_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._bound_head(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._bound_head(name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()
        set_wire(cast("Scope", self.scope), _Wire(self, self.cycle))

    def on_message_complete(self) -> None:
        self._has_ended_one = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        # uvicorn's own is plain text; whatever this service refuses is a problem.
        body = problem_text("about:blank", 400, msg).encode()
        has_begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not has_begun:
            head = f"content-type: {PROBLEM_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head.encode() + body)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_waiting_for_head")
        self._stop("_waiting_for_reader")
        self.sender.close()
        super().connection_lost(exc)
        for watcher in tuple(self.watchers):
            watcher()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop("_waiting_for_reader")
        super().resume_writing()

    def _head_is_here(self) -> bool:
        """Return whether a request is being read or answered, whose head has come."""
        return self.cycle is not None and not self.cycle.response_complete

    def _bound_head(self, *fields: bytes) -> None:
        self._told_bytes += sum(map(len, fields))
        if self._told_bytes > _MAX_HEAD_BYTES:
            raise ValueError(_HEAD_TOO_LONG)  # to the parser, after which 400 is answered

    def _expect_head(self) -> None:
        """Give up a connection whose next request has begun, or should have, and does not end."""
        # Between two requests uvicorn's own timer runs.
        if self._head_is_here() or self.timeout_keep_alive_task is not None:
            self._stop("_waiting_for_head")
        elif self._waiting_for_head is None:
            self._waiting_for_head = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _expect_reading(self, unread_bytes: int) -> None:
        def look() -> None:
            left = self.transport.get_write_buffer_size()
            if left >= unread_bytes:
                self.transport.abort()
            else:
                self._expect_reading(left)

        self._stop("_waiting_for_reader")
        self._waiting_for_reader = self.loop.call_later(self.config.send_stall_seconds, look)

    def _stop(self, timer: str) -> None:
        handle: asyncio.TimerHandle | None = getattr(self, timer)
        if handle is not None:
            handle.cancel()
            setattr(self, timer, None)


class _Wire:
    """The connection of one request, as `http_door.wire` describes it."""

    def __init__(self, protocol: _BoundedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._held = _Held(protocol.transport)
        self.watchers = protocol.watchers

    def hold_head(self) -> None:
        """Let uvicorn write the head to where it is kept."""
        self._cycle.transport = cast("asyncio.Transport", self._held)

    async def write(self, parts: Sequence[Buffer]) -> None:
        """Send head and body."""
        protocol, cycle = self._protocol, self._cycle
        cycle.transport = protocol.transport
        if protocol.flow.write_paused and not cycle.disconnected:
            await protocol.flow.drain()
        # What uvicorn would count of it.
        cycle.expected_content_length -= sum(map(len, parts))
        if not (cycle.disconnected or protocol.transport.is_closing()):
            protocol.sender.write([*self._held.kept, *parts])


class _Held:
    """A transport, as far as uvicorn writes a head to one, that keeps it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.kept: list[bytes] = []
        self.is_closing = transport.is_closing
        self.close = transport.close

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.kept.append(data)
