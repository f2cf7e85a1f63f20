"""The gRPC door: translates, nothing else.

Who may come in is decided before, in `grpc_gate`; what decides an answer is in `teacher`; what an error means on the
wire is in `stillhouse.status`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from stillhouse.chunks import split
from stillhouse.errors import EncodingNotOfferedError, RequestTooLongError
from stillhouse.messages import description_to_proto, request_from_proto
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics
from teacher_service.teacher import EncodedAnswer, Teacher

# Beside the payloads a message holds field tags, timing and the fingerprint.
_MESSAGE_OVERHEAD_BYTES = 4096

Context = grpc.aio.ServicerContext[Any, Any]


class TeacherServicer(pb_grpc.TeacherServiceServicer):
    """Answers the calls of the contract; what it raises is turned into a status by the gate before it."""

    def __init__(self, lifecycle: Lifecycle, metrics: Metrics, max_message_bytes: int) -> None:
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._max_message_bytes = max_message_bytes

    async def GetTeacher(self, request: pb.GetTeacherRequest, context: Context) -> pb.GetTeacherResponse:  # noqa: N802 - the contract's name
        """Say what is served."""
        del context
        return description_to_proto(self._lifecycle.teacher.description, include_tokens=request.include_tokens)

    async def GetOutputHead(  # noqa: N802 - as above
        self, request: pb.GetOutputHeadRequest, context: Context
    ) -> AsyncIterator[pb.GetOutputHeadResponse]:
        """Refuse: hidden states are not on offer, so their head is of no use."""
        del request, context
        raise EncodingNotOfferedError("this teacher does not offer HIDDEN, and so no output head")
        yield pb.GetOutputHeadResponse()

    async def ComputeLogits(  # noqa: N802 - as above
        self, request: pb.ComputeLogitsRequest, context: Context
    ) -> pb.ComputeLogitsResponse:
        """Answer in one message."""
        del context
        most = self._max_message_bytes - _MESSAGE_OVERHEAD_BYTES
        async with self._answering(request.request, most) as answer:
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
        del context
        async with self._answering(request.request, None) as answer:
            sizes = [len(payload) for payload in answer.payloads]
            header = pb.StreamHeader(payload_bytes=sizes, fingerprint=answer.fingerprint)
            yield pb.StreamLogitsResponse(header=header)
            for offset, data in split(answer.payloads):
                yield pb.StreamLogitsResponse(chunk=pb.StreamChunk(offset=offset, data=data))
            trailer = pb.StreamTrailer(timing=_timing(answer), cache_hits=answer.cache_hits)
            yield pb.StreamLogitsResponse(trailer=trailer)

    @asynccontextmanager
    async def _answering(self, message: pb.LogitsRequest, max_bytes: int | None) -> AsyncIterator[EncodedAnswer]:
        teacher: Teacher = self._lifecycle.teacher
        request = request_from_proto(message)
        size = teacher.check(request)
        if max_bytes is not None and size > max_bytes:
            raise RequestTooLongError(
                f"sequences: their answer would have {size} bytes, over the limit of one message of {max_bytes}; "
                "ask with StreamLogits"
            )
        async with teacher.answering(request) as answer:
            self._metrics.response_bytes.labels(type(request.encoding).__name__).inc(answer.num_bytes)
            yield answer


def _timing(answer: EncodedAnswer) -> pb.Timing:
    return pb.Timing(
        queue_seconds=answer.queue_seconds,
        compute_seconds=answer.compute_seconds,
        encode_seconds=answer.encode_seconds,
    )
