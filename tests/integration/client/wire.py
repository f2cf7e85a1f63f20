"""A wire between a client and a service that alters what the service sends, byte by byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Alter = Callable[[bytes, list[int]], bytes]
"""Given a read, and which of its bytes belong to messages, returns what goes on; b"" ends the connection."""

_FRAME_HEAD_BYTES = 9


class DataFrames:
    """Walks a connection's HTTP/2 frames, read by read, and knows which bytes are a message's.

    The other bytes are gRPC's own: version 1.85 aborts the process where a frame of them is altered in some ways
    (a GOAWAY with an error code that is none).
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        self._is_data = False

    def indices(self, data: bytes) -> list[int]:
        """Return which bytes of the next read lie in the body of a DATA frame."""
        found = list[int]()
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                if self._is_data:
                    found.extend(range(at, at + step))
                self._left -= step
                at += step
                continue
            self._head.append(data[at])
            at += 1
            if len(self._head) == _FRAME_HEAD_BYTES:
                self._left = int.from_bytes(self._head[:3], "big")
                self._is_data = self._head[3] == 0
                self._head.clear()
        return found


@contextmanager
def altering(address: str, alter: Alter) -> Iterator[str]:
    """Yield the address of a wire to `address`, which alters what comes back from there."""
    host, port = address.rsplit(":", 1)
    opened: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket, change: Alter) -> None:
        frames = DataFrames()
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                changed = change(data, frames.indices(data))
                if not changed:
                    break
                target.sendall(changed)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                opened.extend((near, far))
                for ends in ((near, far, lambda data, _: data), (far, near, alter)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    for one in opened:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
