"""An answer of HTTP as it comes over a connection, read straight into the memory that it will lie in.

Other clients of HTTP hand out copies, and know a time for each read, so none for a whole answer that comes drop by
drop; here every byte is waited for within the deadline of its call. What HTTP means is httptools' to say. Knows nothing
of what is asked.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence as SequenceOf

import httptools

from stillhouse.chunks import left_of

# Line and headers of an answer.
_MAX_HEAD_BYTES = 2**16
_READ_BYTES = 2**16
# What the system fills at once.
_MOST_VIEWS = 512


class HttpError(Exception):
    """What came is no HTTP, or not what was said before."""


class Response:
    """An answer whose head has come, and whose body is read by whoever has it."""

    def __init__(self, opened: socket.socket, deadline: float) -> None:
        """Read the head.

        Raises:
            OSError, HttpError: as `Connection.ask`.
        """
        self._socket = opened
        self._deadline = deadline
        self._parser = httptools.HttpResponseParser(self)
        self._has_head = self._is_whole = False
        self._come = bytearray()
        self.headers: dict[str, str] = {}
        """By their names in lower case."""
        read = 0
        while not self._has_head:
            data = self._receive()
            if not data:
                raise ConnectionResetError("the connection was closed before an answer came")
            read += len(data)
            self._parse(data)
            if read > _MAX_HEAD_BYTES and not self._has_head:
                raise HttpError(f"the answer's head is over {_MAX_HEAD_BYTES} bytes")
        self.status: int = self._parser.get_status_code()
        closes = "close" in self.headers.get("connection", "").lower()
        self._is_kept_open = self._parser.get_http_version() == "1.1" and not closes
        length = self.headers.get("content-length", "")
        is_known = length.isdecimal() and "transfer-encoding" not in self.headers
        self.num_bytes = int(length[:20]) if is_known else None
        """Of the body; None where the answer does not say."""
        self._left = 0 if self.num_bytes is None else self.num_bytes - len(self._come)

    @property
    def may_follow(self) -> bool:
        """Whether all of it was read, and the connection is good for another."""
        return self._is_whole and not self._come and self._is_kept_open

    def read(self, most_bytes: int) -> bytearray:
        """Return what is left of the body, at most so much of it.

        Raises:
            OSError, HttpError: as `Connection.ask`; ConnectionResetError where it ends early.
        """
        if self.num_bytes is not None:
            data = bytearray(min(len(self._come) + self._left, most_bytes))
            self.fill([memoryview(data)])
            return data
        while not self._is_whole and len(self._come) < most_bytes:
            self._parse(self._receive_some())
        data, self._come = self._come[:most_bytes], self._come[most_bytes:]
        return data

    def fill(self, views: SequenceOf[memoryview]) -> None:
        """Read the next of a body of known length into these, all of them.

        Raises:
            OSError, HttpError: as `read`.
        """
        rest = [view for view in views if view]
        if self._come:
            rest = _filled(rest, self._come)
        while rest:
            count = self._receive_into(rest)
            if not count:
                raise ConnectionResetError(f"the connection was closed {self._left} bytes before the answer's end")
            self._left -= count
            rest = left_of(rest, count)
        self._is_whole = self._is_whole or not self._left

    # What the parser says.

    def on_message_begin(self) -> None:
        """See that there is one answer."""
        if self._is_whole:
            raise HttpError("the answer is followed by what nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Note that the head is there."""
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        """Take some of the body."""
        self._come += body

    def on_message_complete(self) -> None:
        """Note that nothing more comes, unless it was said that something will (1xx)."""
        if self._parser.get_status_code() >= 200:
            self._is_whole = True
        else:
            self._has_head = False
            self.headers.clear()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise HttpError(f"the answer is no HTTP: {error}") from error

    def _receive_some(self) -> bytes:
        data = self._receive()
        if not data:
            raise ConnectionResetError("the connection was closed before the answer's end")
        return data

    def _receive(self) -> bytes:
        self._socket.settimeout(seconds_left(self._deadline))
        return self._socket.recv(_READ_BYTES)

    def _receive_into(self, views: SequenceOf[memoryview]) -> int:
        self._socket.settimeout(seconds_left(self._deadline))
        if isinstance(self._socket, ssl.SSLSocket):
            return self._socket.recv_into(views[0])
        return self._socket.recvmsg_into(views[:_MOST_VIEWS])[0]


def _filled(views: SequenceOf[memoryview], come: bytearray) -> list[memoryview]:
    """Move bytes that have come into views, and return what is left to be filled."""
    taken = 0
    for view in views:
        count = min(len(view), len(come) - taken)
        view[:count] = come[taken : taken + count]
        taken += count
        if taken == len(come):
            break
    del come[:taken]
    return left_of(views, taken)


def seconds_left(deadline: float) -> float:
    """Return how long it is to a deadline of `time.monotonic`.

    Raises:
        TimeoutError: it has come.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has come")
    return left
