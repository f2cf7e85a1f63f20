"""The gRPC door: translates and authorises, nothing else.

What decides an answer is in `teacher`; what an error means on the wire is in `stillhouse.status`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from stillhouse.chunks import split
from stillhouse.errors import EncodingNotOfferedError, RequestTooLongError, TeacherError
from stillhouse.messages import description_to_proto, request_from_proto
from stillhouse.status import status_of
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from teacher_service.auth import Access
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics
from teacher_service.teacher import EncodedAnswer, Teacher

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TeacherService"].full_name
_HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

# Beside the payloads a message holds field tags, timing and the fingerprint.
_MESSAGE_OVERHEAD_BYTES = 4096

Context = grpc.aio.ServicerContext[Any, Any]

logger = structlog.get_logger(__name__)


class TeacherServicer(pb_grpc.TeacherServiceServicer):
    """Answers the calls of the contract."""

    def __init__(self, lifecycle: Lifecycle, metrics: Metrics, max_message_bytes: int) -> None:
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._max_message_bytes = max_message_bytes

    async def GetTeacher(self, request: pb.GetTeacherRequest, context: Context) -> pb.GetTeacherResponse:  # noqa: N802 - the contract's name
        """Say what is served."""
        async with self._call("GetTeacher", context):
            description = self._lifecycle.teacher.description
            return description_to_proto(description, include_tokens=request.include_tokens)

    async def GetOutputHead(  # noqa: N802 - as above
        self, request: pb.GetOutputHeadRequest, context: Context
    ) -> AsyncIterator[pb.GetOutputHeadResponse]:
        """Refuse: hidden states are not on offer, so their head is of no use."""
        del request
        async with self._call("GetOutputHead", context):
            for part in self._output_head():
                yield part

    async def ComputeLogits(  # noqa: N802 - as above
        self, request: pb.ComputeLogitsRequest, context: Context
    ) -> pb.ComputeLogitsResponse:
        """Answer in one message."""
        async with self._call("ComputeLogits", context):
            answer = await self._answer(request.request, self._max_message_bytes - _MESSAGE_OVERHEAD_BYTES)
            return pb.ComputeLogitsResponse(
                payloads=answer.payloads,
                fingerprint=answer.fingerprint,
                timing=_timing(answer),
                cache_hits=answer.cache_hits,
            )

    async def StreamLogits(  # noqa: N802 - as above
        self, request: pb.StreamLogitsRequest, context: Context
    ) -> AsyncIterator[pb.StreamLogitsResponse]:
        """Answer in chunks, each sent when the caller has room for it."""
        async with self._call("StreamLogits", context):
            answer = await self._answer(request.request, None)
            sizes = [len(payload) for payload in answer.payloads]
            header = pb.StreamHeader(payload_bytes=sizes, fingerprint=answer.fingerprint)
            yield pb.StreamLogitsResponse(header=header)
            for offset, data in split(answer.payloads):
                yield pb.StreamLogitsResponse(chunk=pb.StreamChunk(offset=offset, data=data))
            trailer = pb.StreamTrailer(timing=_timing(answer), cache_hits=answer.cache_hits)
            yield pb.StreamLogitsResponse(trailer=trailer)

    def _output_head(self) -> Iterator[pb.GetOutputHeadResponse]:
        raise EncodingNotOfferedError("this teacher does not offer HIDDEN, and so no output head")

    async def _answer(self, message: pb.LogitsRequest, max_bytes: int | None) -> EncodedAnswer:
        teacher: Teacher = self._lifecycle.teacher
        request = request_from_proto(message)
        size = teacher.check(request)
        if max_bytes is not None and size > max_bytes:
            raise RequestTooLongError(
                f"sequences: their answer would have {size} bytes, over the limit of one message of {max_bytes}; "
                "ask with StreamLogits"
            )
        answer = await teacher.answer(request)
        self._metrics.response_bytes.labels(type(request.encoding).__name__).inc(answer.num_bytes)
        return answer

    @asynccontextmanager
    async def _call(self, method: str, context: Context) -> AsyncIterator[None]:
        """Count a call, and turn whatever it raises into its status."""
        started = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            yield
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            if not isinstance(error, TeacherError):
                logger.exception("call_failed", method=method)
            status = status_of(error)
            code = status.code
            context.set_trailing_metadata(status.trailing_metadata)
            await context.abort(status.code, status.message)
        finally:
            self._metrics.requests.labels(method, code.name).inc()
            self._metrics.request_duration.labels(method).observe(time.monotonic() - started)


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic to its stubs alone
    """Refuses every call without the right token, but those of health checks."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Hand the call on, or answer it with the refusal."""
        if handler_call_details.method.startswith(f"/{_HEALTH_NAME}/"):
            return await continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata or ())
        try:
            self._access.check(_text(metadata.get("authorization")), "teacher")
        except TeacherError as error:
            return _refusal(error)
        return await continuation(handler_call_details)


class GrpcDoor:
    """The gRPC server: the teacher, health, and reflection where it is asked for."""

    def __init__(
        self, lifecycle: Lifecycle, metrics: Metrics, access: Access, *, max_message_bytes: int, with_reflection: bool
    ) -> None:
        self._server = grpc.aio.server(
            interceptors=[TokenInterceptor(access)],
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # Two services on one port would each get some of the calls.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # its stubs know the threaded one only
        servicer = TeacherServicer(lifecycle, metrics, max_message_bytes)
        pb_grpc.add_TeacherServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if with_reflection:
            names = (SERVICE_NAME, _HEALTH_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def open(self, address: str) -> int:
        """Listen on host:port, not yet serving; return the port."""
        port = self._server.add_insecure_port(address)
        await self.set_serving(serving=False)
        await self._server.start()
        return port

    async def set_serving(self, *, serving: bool) -> None:
        """Say to health checks whether requests are accepted."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)

    async def close(self, grace_seconds: float) -> None:
        """Accept nothing new, let calls in flight finish within the grace, and end."""
        await self._server.stop(grace_seconds)


def _refusal(error: TeacherError) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(_: object, context: Context) -> None:
        status = status_of(error)
        context.set_trailing_metadata(status.trailing_metadata)
        await context.abort(status.code, status.message)

    # On the wire a refusal looks the same for every kind of call, and its message is never parsed.
    return grpc.unary_unary_rpc_method_handler(refuse)


def _text(value: str | bytes | None) -> str | None:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _timing(answer: EncodedAnswer) -> pb.Timing:
    return pb.Timing(
        queue_seconds=answer.queue_seconds,
        compute_seconds=answer.compute_seconds,
        encode_seconds=answer.encode_seconds,
    )
