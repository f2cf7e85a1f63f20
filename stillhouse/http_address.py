"""Addresses of a teacher's HTTP door: "http://host:port", or "https://" with whatever path a proxy put before it.

Knows nothing of connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, urlsplit

from stillhouse.errors import ConfigurationError

_PORTS = {"http": 80, "https": 443}


def is_http(address: str) -> bool:
    """Return whether an address is one of HTTP, rather than one of gRPC."""
    return address.partition("://")[0].lower() in _PORTS and "://" in address


def is_secure(address: str) -> bool:
    """Return whether an address is of HTTP over TLS."""
    return address.partition("://")[0].lower() == "https"


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where a teacher's HTTP door is; `prefix` stands before each of its paths, without a slash at its end."""

    host: str
    port: int
    prefix: str
    is_secure: bool

    @property
    def authority(self) -> str:
        """Host and port, as the header of that name gives them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def of(cls, address: str) -> Self:
        """Read an address.

        Raises:
            ConfigurationError: it is none, or holds what no teacher's address has.
        """
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"address {address!r} cannot be read: {error}") from None
        if "@" in parts.netloc:
            raise ConfigurationError("address must hold no user or password: give the token as token")
        if not parts.hostname or not _is_plain(parts, address) or port == 0:
            raise ConfigurationError(
                f"address must be http://host:port, with a port from 1 to 65535 and without query; got {address!r}"
            )
        return cls(parts.hostname, port or _PORTS[parts.scheme], parts.path.rstrip("/"), parts.scheme == "https")


def _is_plain(parts: SplitResult, address: str) -> bool:
    # "http://host:" has no port, though it looks as if one had been meant.
    is_whole = not parts.query and not parts.fragment and not parts.netloc.endswith(":")
    return is_whole and address.isascii() and address.isprintable() and " " not in address
