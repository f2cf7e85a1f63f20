"""PyTriton: Triton with a Python function behind it, asked by its own client over gRPC and over HTTP, no batching.

Its stub wants this interpreter's libpython on LD_LIBRARY_PATH.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.loading import Ask, load
from benchmarks.peers.speaking import announce, free_ports, speak
from benchmarks.peers.table import Floats, Ids, Setting, look_up, table

MODEL = "table"


def serve() -> None:
    """Serve until killed."""
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    logits = table()

    def answer(requests: list[Any]) -> list[dict[str, Floats]]:
        return [{"logits": look_up(logits, request["ids"])} for request in requests]

    http_port, grpc_port, metrics_port = free_ports(3)
    config = TritonConfig(
        http_address="127.0.0.1", http_port=http_port, grpc_address="127.0.0.1", grpc_port=grpc_port,
        metrics_port=metrics_port, log_verbose=0,
    )  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            MODEL,
            answer,
            inputs=[Tensor(name="ids", dtype=np.int32, shape=(-1,))],
            outputs=[Tensor(name="logits", dtype=np.float32, shape=(-1, -1))],
            config=ModelConfig(batching=False),
        )
        announce({"grpc": f"127.0.0.1:{grpc_port}", "http": f"127.0.0.1:{http_port}"})
        triton.serve()


def open_door(address: str, door: str) -> Ask:
    """Open a client of its own."""
    if door == "grpc":
        import tritonclient.grpc as triton_client
    else:
        import tritonclient.http as triton_client
    client = triton_client.InferenceServerClient(address)

    def ask(ids: Ids) -> object:
        asked = triton_client.InferInput("ids", [len(ids)], "INT32")
        asked.set_data_from_numpy(ids)
        return client.infer(MODEL, [asked]).as_numpy("logits")

    return ask


def ask_it(address: str, door: str, setting: Setting) -> None:
    """Load it."""
    load(setting, lambda: open_door(address, door))


if __name__ == "__main__":
    speak(serve, ask_it)
