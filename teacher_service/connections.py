"""Closes connections, one caller's or all, which gRPC's server cannot.

What gRPC has taken over of an answer (a chunk and what fits its window, or a whole message) it keeps until the caller
reads it or the connection ends. A caller that does neither would keep it for as long as it likes. And a call that has
come when the server stops, but was not taken up yet, ends CANCELLED, which no client tries again; without its
connection it ends UNAVAILABLE. Linux only: there a process can look at its own sockets; elsewhere the connection's life
ends it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import unquote

_OPEN_FILES = Path("/proc/self/fd")


def close_connection(peer: str, local_port: int) -> bool:
    """Close the connection from `peer`, as gRPC writes it (`ipv4:10.0.0.1:4711`), to a port of ours.

    Both ends of it see that it has ended. Returns whether there was one.
    """
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    for _, connection in _sockets():
        with suppress(OSError, ValueError):
            found = connection.getpeername()
            is_wanted = found[1] == int(port) and _address(found[0]) == _address(host.strip("[]"))
            if is_wanted and connection.getsockname()[1] == local_port:
                connection.shutdown(socket.SHUT_RDWR)
                return True
    return False


def close_port(local_port: int) -> None:
    """Accept nothing new on a port of ours, and close every connection to it."""
    # What listens comes first, or whoever was sent away would be back at once.
    for is_listening in (1, 0):
        for number, one in _sockets():
            with suppress(OSError):
                is_ours = one.getsockname()[1] == local_port
                if not is_ours or one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != is_listening:
                    continue
                if is_listening:
                    # gRPC still closes this number: it stands for a socket that does nothing from now on.
                    with socket.socket(one.family) as idle:
                        os.dup2(idle.fileno(), number, inheritable=False)
                else:
                    one.shutdown(socket.SHUT_RDWR)


def _address(text: str) -> IPv4Address | IPv6Address:
    """Return one form of each address: a socket of both families writes ::ffff:10.0.0.1 for 10.0.0.1."""
    address = ip_address(text.partition("%")[0])
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _sockets() -> Iterator[tuple[int, socket.socket]]:
    """Yield this process's TCP sockets and their numbers, each by a descriptor of its own that is closed again."""
    try:
        open_files = tuple(_OPEN_FILES.iterdir())
    except OSError:
        return
    for file in open_files:
        with suppress(OSError, ValueError):
            if not str(file.readlink()).startswith("socket:"):
                continue
            number = int(file.name)
            with socket.socket(fileno=os.dup(number)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    yield number, connection
