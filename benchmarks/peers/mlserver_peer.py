"""MLServer: one BYTES tensor over gRPC, in its own process (no parallel workers), no batching.

Numbers as a tensor of FP32 become a list of Python's floats in it; bytes pass as they are.
"""

from __future__ import annotations

import asyncio
import tempfile

from benchmarks.peers.loading import Ask, load
from benchmarks.peers.speaking import announce, free_ports, speak
from benchmarks.peers.table import Ids

MODEL = "table"


def serve() -> None:
    """Serve until killed."""
    from mlserver import MLServer, ModelSettings, Settings

    from benchmarks.peers.mlserver_model import Table

    http_port, grpc_port, metrics_port = free_ports(3)
    settings = Settings(
        host="127.0.0.1", http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port, parallel_workers=0,
        metrics_dir=tempfile.mkdtemp(),
    )  # fmt: skip
    announce({"grpc": f"127.0.0.1:{grpc_port}"})
    asyncio.run(MLServer(settings).start([ModelSettings(name=MODEL, implementation=Table)]))


def open_door(address: str) -> Ask:
    """Open a channel of its own."""
    import grpc
    from mlserver.grpc import dataplane_pb2 as pb
    from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

    stub = GRPCInferenceServiceStub(
        grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)])
    )

    def ask(ids: Ids) -> object:
        asked = pb.ModelInferRequest.InferInputTensor(
            name="ids", datatype="BYTES", shape=[1, 1], contents=pb.InferTensorContents(bytes_contents=[ids.tobytes()])
        )
        answer = stub.ModelInfer(pb.ModelInferRequest(model_name=MODEL, inputs=[asked]), timeout=60)
        return answer.outputs[0].contents.bytes_contents[0]

    return ask


if __name__ == "__main__":
    speak(serve, lambda address, _, setting: load(setting, lambda: open_door(address)))
