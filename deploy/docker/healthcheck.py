#!/usr/bin/env python3
"""`stillhouse-health ADDRESS...`: end with 0 if any of the addresses answers as a service in health does.

An address is http://HOST:PORT/PATH, which answers 200, or tcp://HOST:PORT, which takes a connection. An image of
Python alone has no curl to ask with.
"""

from __future__ import annotations

import http.client
import socket
import sys
from urllib.parse import urlsplit

SECONDS = 3.0


def is_healthy(address: str) -> bool:
    """Ask once."""
    parts = urlsplit(address)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    try:
        if parts.scheme == "tcp":
            socket.create_connection((host, port), SECONDS).close()
            return True
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        connection.request("GET", parts.path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False


if __name__ == "__main__":
    sys.exit(0 if any(map(is_healthy, sys.argv[1:])) else 1)
