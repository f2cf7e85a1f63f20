"""One end of the socket between a front and the engine: frames go in and come out whole. For one event loop.

What is written is never torn: a cancelled sender has queued its whole frame or none of it. Nobody queues more while the
other side takes nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, Self

from stillhouse.errors import StillhouseError
from teacher_service.fronts.frames import Buffer, Frame, Kind, read_frame, write_head

# What a reader holds before it has been asked for; a piece of an answer fits.
_READ_BYTES = 2 * 2**20
_SOCKET_BYTES = 2**20


class StalledError(StillhouseError):
    """The other side takes nothing any more."""


class Link:
    """A connection. `stall_seconds` bounds how long the other side may take nothing; None leaves that to the caller."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, stall_seconds: float | None
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._stall_seconds = stall_seconds

    @classmethod
    async def over(cls, connection: socket.socket, *, stall_seconds: float | None = None) -> Self:
        """Speak over a connected socket, which belongs to the link from now on."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=_READ_BYTES)
        return cls(reader, writer, stall_seconds=stall_seconds)

    def tell(self, kind: Kind, call: int = 0, about: Mapping[str, Any] | None = None, body: Buffer = b"") -> None:
        """Say something without waiting; nobody hears it where the other side has gone. For what is small or rare."""
        self._write(Frame(kind, call, about or {}, body))

    async def send(self, kind: Kind, call: int = 0, about: Mapping[str, Any] | None = None, body: Buffer = b"") -> None:
        """Say something once there is room for it; whoever is cancelled before has said nothing.

        Raises:
            StalledError: the other side has taken nothing for `stall_seconds`.
            ConnectionError: it has gone.
        """
        try:
            async with asyncio.timeout(self._stall_seconds) as bound:
                await self._writer.drain()
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise StalledError(f"nothing was taken for {self._stall_seconds:g} s") from error
        self._write(Frame(kind, call, about or {}, body))

    async def receive(self) -> Frame | None:
        """Return what the other side says next; None when it has gone.

        Raises:
            FrameError: it says what is no frame, or was cut off.
        """
        return await read_frame(self._read)

    def close(self) -> None:
        """Hang up at once."""
        self._writer.transport.abort()

    def _write(self, frame: Frame) -> None:
        if not self._writer.transport.is_closing():
            head = write_head(frame)
            if len(frame.body) > _READ_BYTES // 2:
                self._writer.write(head)
                self._writer.write(frame.body)
            else:
                self._writer.write(b"".join((head, frame.body)))

    async def _read(self, num_bytes: int) -> bytes:
        try:
            return await self._reader.readexactly(num_bytes)
        except asyncio.IncompleteReadError as error:
            return error.partial
        except ConnectionError:
            return b""
