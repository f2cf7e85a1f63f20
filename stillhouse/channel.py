"""What a client asks of its gRPC channel, and what it makes of an address, HTTP's included. Knows nothing of calls."""

from __future__ import annotations

import ipaddress
from typing import Any

from stillhouse.chunks import CHUNK_BYTES
from stillhouse.errors import ConfigurationError
from stillhouse.http_address import HttpAddress, is_http
from stillhouse.retries import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS

LEAST_MESSAGE_BYTES = 2 * CHUNK_BYTES
"""Less than this, and a chunk of an answer might not pass."""

_SCHEMES = ("dns", "unix", "unix-abstract", "ipv4", "ipv6", "vsock", "xds")

# A service that freezes or vanishes in the middle of a call is noticed within the sum of these two. A Stillhouse
# service lets a client ping once in 10 seconds; one that does not sends it away, and gRPC then halves its pings.
_PING_AFTER_SECONDS = 15
_PING_TIMEOUT_SECONDS = 20

# A name that has new addresses is looked up again this soon after a connection is lost; gRPC's own choice is 30.
_LOOKUP_SECONDS = 5


def default_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Return gRPC's options; times in milliseconds there."""
    first_wait = int(FIRST_WAIT_SECONDS * 1000)
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        # One layer of retries: `retries`.
        ("grpc.enable_retries", 0),
        # A service that is back is found within the waits between our attempts.
        ("grpc.initial_reconnect_backoff_ms", first_wait),
        ("grpc.min_reconnect_backoff_ms", first_wait),
        ("grpc.max_reconnect_backoff_ms", int(LONGEST_WAIT_SECONDS * 1000)),
        ("grpc.dns_min_time_between_resolutions_ms", _LOOKUP_SECONDS * 1000),
        ("grpc.keepalive_time_ms", _PING_AFTER_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_SECONDS * 1000),
        # Of every other ping, which a keepalive waits behind; by default a minute.
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_SECONDS * 1000),
        # A long batch sends nothing while it computes: by default gRPC would stop asking after two pings.
        ("grpc.http2.max_pings_without_data", 0),
    ]


def check_address(address: str) -> None:
    """See that an address would be read as it is meant, by gRPC or as one of HTTP.

    Raises:
        ConfigurationError: it would not.
    """
    if is_http(address):
        HttpAddress.of(address)
        return
    scheme, colon, rest = address.partition(":")
    if "://" in address and scheme not in _SCHEMES:
        raise ConfigurationError(
            f"address must be host:port (gRPC) or http://host:port, without {scheme}://; got {address!r}"
        )
    if not colon or not rest:
        raise ConfigurationError(f"address must be host:port; got {address!r}")
    if scheme in _SCHEMES and scheme not in ("ipv4", "ipv6"):
        return  # a path, or a name with or without a port
    for target in (rest if scheme in _SCHEMES else address).split(","):
        host, _, port = target.rpartition(":")
        # gRPC would take the port modulo 65536, and call whoever is there.
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ConfigurationError(f"address must be host:port, with a port from 1 to 65535; got {address!r}")


def is_local(address: str) -> bool:
    """Return whether what is sent to an address never leaves this machine."""
    if is_http(address):
        return _is_loopback_host(HttpAddress.of(address).host)
    scheme, _, rest = address.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    targets = rest if scheme in _SCHEMES else address
    return all(_is_loopback(target) for target in targets.rpartition("/")[2].split(","))


def _is_loopback(target: str) -> bool:
    return _is_loopback_host(target.rpartition(":")[0].strip("[]"))


def _is_loopback_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
