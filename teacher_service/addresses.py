"""Hosts and ports: bound before anything is loaded, so that a taken one is said at once.

Knows nothing of what is served there.
"""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from stillhouse.errors import ConfigurationError


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Bind, not yet listening; port 0 takes any free one. `setting` names the port in an error.

    Raises:
        ConfigurationError: the port is taken, or the host is no address of this machine.
    """
    flag, variable = f"--{setting.replace('_', '-')}", f"TEACHER_{setting.upper()}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            # Only lets a restart bind while old connections time out; a port that is listened on stays taken.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"{setting}: cannot listen on {address_of(host, port)}: {error.strerror or error}; free the port, or set "
            f"another with {flag} or {variable} (0 takes any free one)"
        ) from error
    return bound


def hold_shared(host: str, port: int, setting: str) -> tuple[socket.socket, socket.socket]:
    """Take a port that processes of this user may listen on together, without listening; port 0 takes any free one.

    Whoever holds both sockets keeps it from all others while those who listen come and go. The second is a name that
    one process can have: two services of one user that begin at the same moment would both be given the port.

    Raises:
        ConfigurationError: as `bind`; one that somebody listens on is taken, however they share it.
    """
    with bind(host, port, setting) as bound:
        family, address = bound.family, bound.getsockname()
    held, name = socket.socket(family, socket.SOCK_STREAM), socket.socket(socket.AF_UNIX)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
        # Of no folder: as the port itself, it is of this network and gone with its process.
        name.bind(f"\0stillhouse {address[0]} {address[1]}")
    except OSError as error:
        held.close()
        name.close()
        raise ConfigurationError(
            f"{setting}: {address_of(host, address[1])} cannot be shared by the processes of this service alone: "
            f"{error.strerror or error}"
        ) from error
    return held, name


def address_of(host: str, port: int) -> str:
    """Return host:port, the host in brackets where it is an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Return whether only this machine can reach what listens there."""
    address = ip_address(bound.getsockname()[0].partition("%")[0])
    return ((address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address).is_loopback


def bind_unix(path: Path) -> socket.socket:
    """Bind a Unix socket, not yet listening, that its folder's permissions guard."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.bind(str(path))
    return bound
