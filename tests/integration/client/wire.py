"""A wire between a client and a service that alters what the service sends, byte by byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Alter = Callable[[bytes], bytes]


@contextmanager
def altering(address: str, alter: Alter) -> Iterator[str]:
    """Yield the address of a wire to `address`; `alter` is given each read, and b"" from it ends the connection."""
    host, port = address.rsplit(":", 1)
    opened: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket, change: Alter) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                changed = change(data)
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
                for ends in ((near, far, lambda data: data), (far, near, alter)):
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
