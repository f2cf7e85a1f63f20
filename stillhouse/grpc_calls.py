"""The calls of the contract over gRPC; those over HTTP are in `http_calls`.

Small answers come in one message, larger ones as a stream of chunks. Answers are read by `answer_messages`, where the
generated stub would have protobuf copy them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

import grpc
import grpc.aio

from stillhouse.answer_messages import RawAnswer, read_answer, read_stream_message
from stillhouse.calls import Metadata
from stillhouse.cutting import Part
from stillhouse.exchange import COMPUTE_LOGITS, STREAM_LOGITS, StreamReader, checked_message
from stillhouse.head_exchange import HeadReader
from stillhouse.messages import request_to_proto
from stillhouse.payloads import OutputHead
from stillhouse.status import FailedCall, error_of
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as rpc

_R_co = TypeVar("_R_co", covariant=True)

Options = Sequence[tuple[str, Any]]


class GrpcCalls:
    """Calls to one teacher, from any thread."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None, options: Options) -> None:
        """Name a teacher; nothing is sent yet."""
        self._address = address
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        self._stub = rpc.TeacherServiceStub(self._channel)
        self._compute_logits = self._channel.unary_unary(
            COMPUTE_LOGITS, pb.ComputeLogitsRequest.SerializeToString, read_answer
        )
        self._stream_logits = self._channel.unary_stream(
            STREAM_LOGITS, pb.StreamLogitsRequest.SerializeToString, read_stream_message
        )

    def describe(self, *, include_tokens: bool, seconds: float, metadata: Metadata) -> pb.GetTeacherResponse:
        """Ask what is served."""
        request = pb.GetTeacherRequest(include_tokens=include_tokens)
        with _meaning(self._address):
            return checked_message(self._stub.GetTeacher(request, timeout=seconds, metadata=metadata))

    def answer(self, part: Part, *, seconds: float, metadata: Metadata) -> RawAnswer:
        """Ask about a part of a request."""
        message = request_to_proto(part.request)
        with _meaning(self._address):
            if part.fits_one_message:
                request = pb.ComputeLogitsRequest(request=message)
                answer: RawAnswer | None = self._compute_logits(request, timeout=seconds, metadata=metadata)
                return checked_message(answer)
            stream = pb.StreamLogitsRequest(request=message)
            return _read(self._stream_logits(stream, timeout=seconds, metadata=metadata), StreamReader(part))

    def output_head(self, reader: HeadReader, *, seconds: float, metadata: Metadata) -> OutputHead:
        """Fetch the output head."""
        with _meaning(self._address):
            return _read(self._stub.GetOutputHead(reader.request, timeout=seconds, metadata=metadata), reader)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class AsyncGrpcCalls:
    """The same for asyncio, in one event loop: that in which it is made."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None, options: Options) -> None:
        """Name a teacher; nothing is sent yet."""
        self._address = address
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options)
        self._stub: rpc.TeacherServiceAsyncStub = rpc.TeacherServiceStub(self._channel)
        self._compute_logits: Any = self._channel.unary_unary(
            COMPUTE_LOGITS, pb.ComputeLogitsRequest.SerializeToString, read_answer
        )
        self._stream_logits: Any = self._channel.unary_stream(
            STREAM_LOGITS, pb.StreamLogitsRequest.SerializeToString, read_stream_message
        )

    async def describe(self, *, include_tokens: bool, seconds: float, metadata: Metadata) -> pb.GetTeacherResponse:
        """Ask what is served."""
        request = pb.GetTeacherRequest(include_tokens=include_tokens)
        with _meaning(self._address):
            return checked_message(await self._stub.GetTeacher(request, timeout=seconds, metadata=metadata))

    async def answer(self, part: Part, *, seconds: float, metadata: Metadata) -> RawAnswer:
        """Ask about a part of a request."""
        message = request_to_proto(part.request)
        with _meaning(self._address):
            if part.fits_one_message:
                request = pb.ComputeLogitsRequest(request=message)
                answer: RawAnswer | None = await self._compute_logits(request, timeout=seconds, metadata=metadata)
                return checked_message(answer)
            stream = pb.StreamLogitsRequest(request=message)
            call = self._stream_logits(stream, timeout=seconds, metadata=metadata)
            return await _read_async(call, StreamReader(part))

    async def output_head(self, reader: HeadReader, *, seconds: float, metadata: Metadata) -> OutputHead:
        """Fetch the output head."""
        with _meaning(self._address):
            call = self._stub.GetOutputHead(reader.request, timeout=seconds, metadata=metadata)
            return await _read_async(call, reader)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close(None)


class _Reader(Protocol[_R_co]):
    """Reads a stream: `StreamReader`, or `HeadReader`."""

    def take(self, message: Any, /) -> None:
        """Take the next message."""

    def finish(self) -> _R_co:
        """Return what it came to."""


def _read(call: Any, reader: _Reader[_R_co]) -> _R_co:  # a call, to the stubs without its methods
    try:
        for response in call:
            reader.take(response)
    finally:
        call.cancel()
    return reader.finish()


async def _read_async(call: Any, reader: _Reader[_R_co]) -> _R_co:  # as above
    try:
        async for response in call:
            reader.take(checked_message(response))
    finally:
        call.cancel()
    return reader.finish()


@contextmanager
def _meaning(address: str) -> Iterator[None]:
    """Raise what the service at `address` meant by a status."""
    try:
        yield
    except (grpc.RpcError, grpc.aio.AioRpcError) as error:
        raise error_of(cast("FailedCall", error), address) from error
