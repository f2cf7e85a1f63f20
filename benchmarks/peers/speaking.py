"""The two verbs of a contestant, and the doors that most of them have. Needs numpy alone."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Callable

from benchmarks.peers.table import SETTINGS, Ids, Setting

Addresses = dict[str, str]


def announce(addresses: Addresses) -> None:
    """Say where a server will listen."""
    print(json.dumps(addresses), flush=True)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def speak(serve: Callable[[], None], load: Callable[[str, str, Setting], None]) -> None:
    """Do what the command line says; `load` is given the address, the name of its door, and the setting."""
    if sys.argv[1:] == ["serve"]:
        serve()
        return
    _, addresses, setting, door = sys.argv[1:]
    load(json.loads(addresses)[door], door, SETTINGS[setting])


class HttpDoor:
    """One connection to a path that takes ids, as their bytes or as JSON, and answers with the values' bytes."""

    def __init__(self, address: str, path: str, *, as_json: bool = False) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=60)
        self._path = path
        self._as_json = as_json

    def __call__(self, ids: Ids) -> bytes:
        """Ask."""
        try:
            return self._ask(ids)
        except ConnectionError:
            # Between two turns a server may have closed a connection that nobody used.
            self._connection.close()
            return self._ask(ids)

    def _ask(self, ids: Ids) -> bytes:
        body = json.dumps({"ids": ids.tolist()}).encode() if self._as_json else ids.tobytes()
        headers = {"Content-Type": "application/json" if self._as_json else "application/octet-stream"}
        self._connection.request("POST", self._path, body, headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {answer[:200]!r}")
        return answer
