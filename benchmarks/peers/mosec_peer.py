"""Mosec: bytes in, bytes out by `serialize` and `deserialize` of its worker, one worker, no batching."""

from __future__ import annotations

import os
import sys

import numpy as np
from mosec import Server, Worker

from benchmarks.peers.loading import load
from benchmarks.peers.speaking import HttpDoor, announce, free_ports, speak
from benchmarks.peers.table import Floats, Ids, look_up, table


class Table(Worker):  # type: ignore[misc]  # it is not installed where types are checked
    """Answers from the table."""

    def __init__(self) -> None:
        self._table = table()

    def deserialize(self, data: bytes) -> Ids:
        """Read a body."""
        return np.frombuffer(data, np.int32)

    def forward(self, data: Ids) -> Floats:
        """Look up."""
        return look_up(self._table, data)

    def serialize(self, data: Floats) -> bytes:
        """Write a body."""
        return data.tobytes()


def serve() -> None:
    """Serve until killed. Mosec starts this script again for its worker, which must say nothing."""
    if "MOSEC_PORT" not in os.environ:
        (port,) = free_ports(1)
        os.environ["MOSEC_PORT"] = str(port)
        announce({"http": f"127.0.0.1:{port}"})
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", os.environ["MOSEC_PORT"], "--log-level", "error"]
    server = Server()
    server.append_worker(Table, num=1)
    server.run()


if __name__ == "__main__":
    speak(serve, lambda address, _, setting: load(setting, lambda: HttpDoor(address, "/inference")))
