"""Connections to a teacher's HTTP door, kept for the next call; what comes over one is in `http_response`.

Several threads may share one `Connections`. Knows nothing of what is asked.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from stillhouse.http_address import HttpAddress
from stillhouse.http_response import Response, seconds_left

# A service closes a connection that has been idle for 30 seconds: one that is nearly so old may close under a request.
_MAX_IDLE_SECONDS = 20.0
_MAX_IDLE_CONNECTIONS = 64


class Connection:
    """One connection; for one call after the other."""

    def __init__(self, address: HttpAddress, context: ssl.SSLContext | None) -> None:
        self._address = address
        self._context = context
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._is_ended = False
        self.idle_since = 0.0

    @property
    def is_new(self) -> bool:
        """Whether nothing has been asked through it."""
        return self._socket is None

    def ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float) -> Response:
        """Send a request and return its response, of which the head has come. `deadline` is of `time.monotonic`.

        Raises:
            OSError: nobody is there, or whoever was has gone; TimeoutError where the deadline came.
            HttpError: what came is no HTTP.
        """
        if self._socket is None:
            self._open(deadline)
        assert self._socket is not None  # noqa: S101 - opened above
        address = self._address
        length = {} if body is None else {"content-length": str(len(body))}
        lines = [f"{name}: {value}\r\n" for name, value in {"host": address.authority, **headers, **length}.items()]
        head = "".join([f"{method} {address.prefix}{path} HTTP/1.1\r\n", *lines, "\r\n"])
        # Whoever refuses a request before it is whole has said why: that can still be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send(head.encode("latin-1") + (body or b""), deadline)
        return Response(self._socket, deadline)

    def end(self) -> None:
        """Break off whatever is under way, from whatever thread."""
        with self._lock:
            self._is_ended = True
            if self._socket is not None:
                _shut_down(self._socket)

    def close(self) -> None:
        """Give the connection up; nothing is under way."""
        if self._socket is not None:
            self._socket.close()

    def _open(self, deadline: float) -> None:
        address = self._address
        opened = socket.create_connection((address.host, address.port), timeout=seconds_left(deadline))
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                opened.settimeout(seconds_left(deadline))
                opened = self._context.wrap_socket(opened, server_hostname=address.host)
        except BaseException:
            opened.close()
            raise
        with self._lock:
            self._socket = opened
            if self._is_ended:
                _shut_down(opened)

    def _send(self, data: bytes, deadline: float) -> None:
        assert self._socket is not None  # noqa: S101 - as `ask`
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(seconds_left(deadline))
            rest = rest[self._socket.send(rest) :]


class Connections:
    """The connections to one door: those that are idle, and those that are in use."""

    def __init__(self, address: HttpAddress, context: ssl.SSLContext | None) -> None:
        self._address = address
        self._context = context
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._in_use: set[Connection] = set()
        self._is_closed = False

    @contextmanager
    def response(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float, ongoing: Ongoing
    ) -> Iterator[Response]:
        """Ask, and give the response; the connection is kept where all of it was read.

        Raises:
            OSError, HttpError: as `Connection.ask`; reading the response raises them too.
        """
        connection, response = self._ask(method, path, body, headers, deadline, ongoing)
        is_good = False
        try:
            yield response
            is_good = response.may_follow
        finally:
            ongoing.let_go()
            self._give_back(connection, is_good=is_good)

    def close(self) -> None:
        """Close all connections; calls under way fail."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            in_use = tuple(self._in_use)
        for connection in in_use:
            connection.end()
        for connection in idle:
            connection.close()

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float, ongoing: Ongoing
    ) -> tuple[Connection, Response]:
        while True:
            connection = self._take()
            was_new = connection.is_new
            try:
                ongoing.hold(connection)
                return connection, connection.ask(method, path, body, headers, deadline)
            except BaseException as error:
                ongoing.let_go()
                self._give_back(connection, is_good=False)
                # An idle connection may have been closed by the other side: that is no failure, and nothing was
                # answered. Each turn takes one out of those that are kept, so that there is an end to it.
                is_stale = not was_new and isinstance(error, ConnectionError)
                if not is_stale or ongoing.is_over:
                    raise

    def _take(self) -> Connection:
        oldest = time.monotonic() - _MAX_IDLE_SECONDS
        with self._lock:
            if self._is_closed:
                raise ConnectionAbortedError("the client is closed")
            stale = [one for one in self._idle if one.idle_since < oldest]
            self._idle = [one for one in self._idle if one.idle_since >= oldest]
            # The one that was used last: it is the likeliest to be open still.
            connection = self._idle.pop() if self._idle else Connection(self._address, self._context)
            self._in_use.add(connection)
        for one in stale:
            one.close()
        return connection

    def _give_back(self, connection: Connection, *, is_good: bool) -> None:
        with self._lock:
            self._in_use.discard(connection)
            is_kept = is_good and not self._is_closed and len(self._idle) < _MAX_IDLE_CONNECTIONS
            if is_kept:
                connection.idle_since = time.monotonic()
                self._idle.append(connection)
        if not is_kept:
            connection.close()


class Ongoing:
    """One call, for whoever may break it off from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self.is_over = False
        """Whether nobody waits for it any more."""

    def hold(self, connection: Connection) -> None:
        """Say through which connection it goes."""
        with self._lock:
            self._connection = connection
            if self.is_over:
                raise ConnectionAbortedError("the call was given up")

    def let_go(self) -> None:
        """Say that it goes through none any more."""
        with self._lock:
            self._connection = None

    def give_up(self) -> None:
        """Break the call off."""
        with self._lock:
            self.is_over = True
            if self._connection is not None:
                self._connection.end()


def _shut_down(opened: socket.socket) -> None:
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)
