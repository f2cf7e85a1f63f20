"""The gRPC door: translates, nothing else.

Who may come in is decided before, in `grpc_gate`; what decides an answer is in `teacher`, here or behind a front
process; what an error means on the wire is in `stillhouse.status`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import Any, cast

import grpc

from stillhouse.answer_messages import write_answer, write_chunk
from stillhouse.chunks import split_views
from stillhouse.encodings import ValueType
from stillhouse.errors import FingerprintMismatchError, InvalidRequestError, RequestTooLongError
from stillhouse.messages import description_to_proto
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service.answering import EncodedAnswer, Serving
from teacher_service.metrics import Metrics
from teacher_service.request_reading import RequestReader

# Beside the payloads a message holds field tags, timing and the fingerprint.
_MESSAGE_OVERHEAD_BYTES = 4096

_VALUE_TYPES: dict[int, ValueType | None] = {
    pb.VALUE_TYPE_UNSPECIFIED: None,
    pb.VALUE_TYPE_FLOAT32: "float32",
    pb.VALUE_TYPE_BFLOAT16: "bfloat16",
}

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TeacherService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class TeacherServicer:
    """Answers the calls of the contract; what it raises is turned into a status by the gate before it."""

    def __init__(self, serving: Serving, metrics: Metrics, max_message_bytes: int) -> None:
        self._serving = serving
        self._response_bytes = cache(metrics.response_bytes.labels)
        self._max_message_bytes = max_message_bytes
        self._reader = RequestReader()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Have a server answer by this."""
        # Not by the generated handlers: answers come as the bytes of their messages, which protobuf would copy.
        once: Any = grpc.unary_unary_rpc_method_handler  # typed for the threaded server alone
        often: Any = grpc.unary_stream_rpc_method_handler
        handlers = {
            "GetTeacher": once(
                self._get_teacher, pb.GetTeacherRequest.FromString, pb.GetTeacherResponse.SerializeToString
            ),
            "GetOutputHead": often(
                self._get_output_head, pb.GetOutputHeadRequest.FromString, pb.GetOutputHeadResponse.SerializeToString
            ),
            "ComputeLogits": once(self._compute_logits, pb.ComputeLogitsRequest.FromString),
            "StreamLogits": often(self._stream_logits, pb.StreamLogitsRequest.FromString),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def _get_teacher(self, request: pb.GetTeacherRequest, context: Context) -> pb.GetTeacherResponse:
        """Say what is served."""
        del context
        return description_to_proto(self._serving.teacher.description, include_tokens=request.include_tokens)

    async def _get_output_head(
        self, request: pb.GetOutputHeadRequest, context: Context
    ) -> AsyncIterator[pb.GetOutputHeadResponse]:
        """Stream the output head in chunks, each sent when the caller has room for it."""
        del context
        description = self._serving.teacher.description
        if request.expected_fingerprint not in ("", description.fingerprint):
            raise FingerprintMismatchError(
                f"expected_fingerprint is {request.expected_fingerprint}, but this teacher's is "
                f"{description.fingerprint}: its weights or settings have changed; describe it anew"
            )
        async with self._serving.head_bytes.sending(_value_type(request)) as head:
            self._response_bytes("OutputHead").inc(head.num_bytes)
            async for offset, data in head.chunks():
                yield pb.GetOutputHeadResponse(
                    offset=offset, total_bytes=head.num_bytes, data=data, fingerprint=description.fingerprint
                )

    async def _compute_logits(self, request: pb.ComputeLogitsRequest, context: Context) -> bytes:
        """Answer in one message."""
        most = self._max_message_bytes - _MESSAGE_OVERHEAD_BYTES
        async with AsyncExitStack() as stack:
            answer = await stack.enter_async_context(self._answering(request.request, most))
            response = write_answer(answer.raw())
            # Until its last byte has gone, the answer counts as held.
            held = stack.pop_all()
        context.add_done_callback(cast("Any", lambda _: asyncio.ensure_future(held.aclose())))
        return response

    async def _stream_logits(self, request: pb.StreamLogitsRequest, context: Context) -> AsyncIterator[bytes]:
        """Answer in chunks, each sent when the caller has room for it."""
        del context
        async with self._answering(request.request, None) as answer:
            sizes = [len(payload) for payload in answer.payloads]
            header = pb.StreamHeader(payload_bytes=sizes, fingerprint=answer.fingerprint)
            yield pb.StreamLogitsResponse(header=header).SerializeToString()
            for offset, parts in split_views(answer.payloads):
                yield write_chunk(offset, parts)
            trailer = pb.StreamTrailer(timing=answer.timing(), cache_hits=answer.cache_hits)
            yield pb.StreamLogitsResponse(trailer=trailer).SerializeToString()

    @asynccontextmanager
    async def _answering(self, message: pb.LogitsRequest, max_bytes: int | None) -> AsyncIterator[EncodedAnswer]:
        teacher = self._serving.teacher
        request = await self._reader.read(message, teacher.description.limits)
        asked = teacher.check(request)
        if max_bytes is not None and asked.most_bytes > max_bytes:
            raise RequestTooLongError(
                f"sequences: their answer would have {asked.most_bytes} bytes, over the limit of one message of "
                f"{max_bytes}; ask with StreamLogits"
            )
        async with teacher.answering(asked) as answer:
            self._response_bytes(type(request.encoding).__name__).inc(answer.num_bytes)
            yield answer


def _value_type(request: pb.GetOutputHeadRequest) -> ValueType | None:
    if request.value_type not in _VALUE_TYPES:
        raise InvalidRequestError(f"value_type must be float32 or bfloat16; got number {request.value_type}")
    return _VALUE_TYPES[request.value_type]
