"""Which of this machine's addresses its peers should use: the one that leads to the lighthouse."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from stillhouse.errors import ConfigurationError

_SIOCGIFADDR = 0x8915
"""Linux: the IPv4 address of an interface."""


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT` or `http://HOST:PORT`; IPv6 hosts stand in brackets.

    Raises:
        ConfigurationError: If there is no port.
    """
    host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigurationError(f"lighthouse is {address!r}; it must be HOST:PORT, such as 10.0.0.4:29510")
    return host.strip("[]"), int(port)


def local_address(host: str, port: int) -> str:
    """Return this machine's own address on the way to a host. Nothing is sent.

    Raises:
        ConfigurationError: If the host's name is unknown or there is no way to it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigurationError(f"lighthouse {host}:{port} cannot be reached from here: {error}") from error


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an IPv4 address, None if none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # an interface without an IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def use_interface_of(address: str) -> None:
    """Let gloo and NCCL talk over the interface of an address, unless the environment names one already.

    Otherwise gloo takes the address of the host's name, which on many systems is a loopback one.
    """
    if name := interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
