"""Calls to a service with nothing of our client around them: no retries, no checks, a deadline only where asked for."""

from __future__ import annotations

import asyncio

import grpc

from stillhouse.encodings import Dense, Encoding
from stillhouse.messages import request_to_proto
from stillhouse.request import All, CacheMode, LogitsRequest, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from teacher_service.service import TeacherService

# Without its probe, what gRPC takes over for an application that does not read never grows.
OPTIONS = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)]


def ask(*ids: tuple[int, ...], cache_mode: CacheMode = "use", encoding: Encoding | None = None) -> LogitsRequest:
    """Return a request for all positions of these sequences."""
    return LogitsRequest(tuple(Sequence(one, (), All()) for one in ids), encoding or Dense(), cache_mode=cache_mode)


def channel_to(service: TeacherService) -> grpc.aio.Channel:
    """Return a channel that tries nothing again."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}", options=OPTIONS)


def compute(
    channel: grpc.aio.Channel, request: LogitsRequest, timeout: float | None = None
) -> grpc.aio.UnaryUnaryCall[pb.ComputeLogitsRequest, pb.ComputeLogitsResponse]:
    """Start a call of ComputeLogits."""
    message = pb.ComputeLogitsRequest(request=request_to_proto(request))
    return pb_grpc.TeacherServiceStub(channel).ComputeLogits(message, timeout=timeout)


def stream(
    channel: grpc.aio.Channel, request: LogitsRequest
) -> grpc.aio.UnaryStreamCall[pb.StreamLogitsRequest, pb.StreamLogitsResponse]:
    """Start a call of StreamLogits."""
    message = pb.StreamLogitsRequest(request=request_to_proto(request))
    return pb_grpc.TeacherServiceStub(channel).StreamLogits(message)


HOLDING = ("teacher_requests_in_flight", "teacher_held_bytes", "teacher_queue_size", "teacher_queue_tokens")
"""What is 0 again when the last answer has gone."""


def value(service: TeacherService, name: str, **labels: str) -> float:
    """Return what the service counts under this name."""
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


async def until_empty(service: TeacherService) -> None:
    """Wait until nothing is in flight, here and in the fronts: a caller has its answer before the service knows it."""
    async with asyncio.timeout(15):
        while True:
            await service.metrics.refresh()
            if not any(value(service, name) for name in HOLDING):
                return
            await asyncio.sleep(0.005)
