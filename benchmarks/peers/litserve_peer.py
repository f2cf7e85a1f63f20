"""LitServe: JSON in, as it reads requests; a response of bytes out of `encode_response`; one worker, no batching."""

from __future__ import annotations

from typing import Any

import litserve
import numpy as np
from fastapi import Response

from benchmarks.peers.loading import load
from benchmarks.peers.speaking import HttpDoor, announce, free_ports, speak
from benchmarks.peers.table import Floats, Ids, look_up, table


class Table(litserve.LitAPI):  # type: ignore[misc]  # it is not installed where types are checked
    """Answers from the table."""

    def setup(self, device: str) -> None:
        """Make it, in the worker."""
        del device
        self._table = table()

    def decode_request(self, request: dict[str, list[int]], **_: Any) -> Ids:
        """Read a body: JSON, which LitServe has parsed."""
        return np.array(request["ids"], np.int32)

    def predict(self, x: Ids, **_: Any) -> Floats:
        """Look up."""
        return look_up(self._table, x)

    def encode_response(self, output: Floats, **_: Any) -> Response:
        """Write a body."""
        return Response(output.tobytes(), media_type="application/octet-stream")


def serve() -> None:
    """Serve until killed."""
    (port,) = free_ports(1)
    announce({"http": f"127.0.0.1:{port}"})
    server = litserve.LitServer(Table(), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    speak(serve, lambda address, _, setting: load(setting, lambda: HttpDoor(address, "/predict", as_json=True)))
