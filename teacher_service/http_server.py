"""The HTTP server: uvicorn with bounds on connections, on how long a request may take to arrive, and on unread answers.

uvicorn waits for ever for a request's head, and for ever for a caller that does not read: a few thousand idle sockets
would hold its memory. Knows nothing of routes; they are in `app`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from teacher_service.http_door.problems import PROBLEM_TYPE, problem_text

_LISTEN_BACKLOG = 2048

# A request's line and headers come at once from any real client.
_HEAD_SECONDS = 10.0
# How long a connection may stay open between two requests.
_KEEP_ALIVE_SECONDS = 30
# Lines and headers of a request together.
_MAX_HEAD_BYTES = 32 * 1024


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
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
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


class _BoundedProtocol(H11Protocol):
    """A connection that is closed when nothing comes of it."""

    config: _Config
    _waiting_for_head: asyncio.TimerHandle | None = None
    _waiting_for_reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base
        super().connection_made(transport)
        if len(self.connections) > self.config.max_connections:
            transport.abort()
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def send_400_response(self, msg: str) -> None:
        # uvicorn's own is plain text; whatever this service refuses is a problem.
        body = problem_text("about:blank", 400, msg).encode()
        headers = [("content-type", PROBLEM_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_waiting_for_head")
        self._stop("_waiting_for_reader")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop("_waiting_for_reader")
        super().resume_writing()

    def _expect_head(self) -> None:
        """Give up a connection whose next request has begun, or should have, and does not end."""
        # Between two requests uvicorn's own timer runs.
        head_is_here = self.conn.states[self.conn.their_role].__name__ != "IDLE"
        if head_is_here or self.timeout_keep_alive_task is not None:
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
