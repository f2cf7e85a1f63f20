"""TeacherClient: a teacher behind gRPC, as a `TeacherLogitsProvider`; and the same for asyncio.

Every answer is checked before it is handed out (see `exchange`), and every error is the one that the service meant
(see `status`). A call has a deadline, and is tried again, within bounds, while nobody answers or the queue is full.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, cast

import grpc
import grpc.aio
import tenacity

from stillhouse.client_base import ClientBase
from stillhouse.encodings import Encoding, ValueType
from stillhouse.exchange import Part, RawAnswer, StreamReader, decode_answer, join_answers, read_message
from stillhouse.messages import request_to_proto
from stillhouse.payloads import OutputHead, Payload
from stillhouse.providers import Answer, TeacherLogitsProvider, TokenRows, plain_request
from stillhouse.request import LogitsRequest, Positions, TeacherDescription
from stillhouse.status import FailedCall, error_of
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as rpc

_R = TypeVar("_R")

# The least that a last attempt is given, where the deadline has all but come.
_LEAST_TIMEOUT_SECONDS = 0.001


class TeacherClient(ClientBase, TeacherLogitsProvider):
    """Asks a teacher service; several threads may share one. Use it in `with`, or `close` it.

    What it raises is the class of `stillhouse.errors` that the service meant, and besides: `CodecError` or
    `StreamError` for an answer damaged on its way, `TeacherInternalError` for one to another question, and
    `FingerprintMismatchError` when the teacher has become another.
    """

    def _open(self) -> None:
        if self._credentials is None:
            self._channel = grpc.insecure_channel(self.address, self._channel_options)
        else:
            self._channel = grpc.secure_channel(self.address, self._credentials, self._channel_options)
        self._stub = rpc.TeacherServiceStub(self._channel)
        self._describing = threading.Lock()
        self._fetching_head = threading.Lock()

    def describe(self, *, include_tokens: bool = False) -> TeacherDescription:
        """Return what is served; asked once, and with `include_tokens` once more."""
        with self._describing:
            known = self._descriptions.get(include_tokens)
            if known is not None:
                return known
            message = self._call(
                lambda seconds_left: self._stub.GetTeacher(
                    pb.GetTeacherRequest(include_tokens=include_tokens), timeout=seconds_left, metadata=self._metadata
                )
            )
            return self._remember(message, include_tokens=include_tokens)

    def answer(self, request: LogitsRequest) -> Answer:
        """Answer a request; one over the teacher's limits on sequences or tokens is asked in parts."""
        teacher = self.describe()
        answers = [self._answer_part(part) for part in self._parts(request, teacher)]
        return join_answers(answers, teacher.fingerprint)

    def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        """Return what rebuilds the logits from a `Hidden` answer; fetched once for each value type.

        `value_type` is "float32" or "bfloat16"; None is what the teacher computes in. The tensors are shared by all
        who ask: they are read, never changed.
        """
        with self._fetching_head:
            if value_type not in self._heads:
                self._heads[value_type] = self._call(partial(self._fetch_head, self.describe(), value_type))
            return self._heads[value_type]

    def close(self) -> None:
        """Close the channel; calls still under way end with an error."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer_part(self, part: Part) -> Answer:
        message = request_to_proto(part.request)
        ask = self._ask if part.fits_one_message else partial(self._stream, part)
        return decode_answer(part, self._call(partial(ask, message)))

    def _ask(self, message: pb.LogitsRequest, seconds_left: float) -> RawAnswer:
        request = pb.ComputeLogitsRequest(request=message)
        return read_message(self._stub.ComputeLogits(request, timeout=seconds_left, metadata=self._metadata))

    def _stream(self, part: Part, message: pb.LogitsRequest, seconds_left: float) -> RawAnswer:
        reader = StreamReader(part)
        call = self._stub.StreamLogits(
            pb.StreamLogitsRequest(request=message), timeout=seconds_left, metadata=self._metadata
        )
        try:
            for response in call:
                reader.take(response)
        finally:
            call.cancel()  # type: ignore[no-untyped-call]  # the stubs give it no types
        return reader.finish()

    def _fetch_head(self, teacher: TeacherDescription, value_type: ValueType | None, seconds_left: float) -> OutputHead:
        reader = self._head_reader(teacher, value_type)
        call = self._stub.GetOutputHead(reader.request, timeout=seconds_left, metadata=self._metadata)
        try:
            for response in call:
                reader.take(response)
        finally:
            call.cancel()  # type: ignore[no-untyped-call]  # the stubs give it no types
        return reader.finish()

    def _call(self, attempt: Callable[[float], _R]) -> _R:
        """Return what `attempt` returns; it is given the seconds that are left to it."""
        deadline = time.monotonic() + self._timeout_seconds

        def once() -> _R:
            try:
                return attempt(max(deadline - time.monotonic(), _LEAST_TIMEOUT_SECONDS))
            except grpc.RpcError as error:
                raise error_of(cast("FailedCall", error), self.address) from error

        return tenacity.Retrying(**self._retry_options())(once)


class AsyncTeacherClient(ClientBase):
    """The same as `TeacherClient`, for asyncio: use it in `async with`, or `close` it, in one event loop."""

    def _open(self) -> None:
        self._channel: grpc.aio.Channel | None = None
        self._fetching_head = asyncio.Lock()

    async def describe(self, *, include_tokens: bool = False) -> TeacherDescription:
        """Return what is served; asked once, and with `include_tokens` once more."""
        known = self._descriptions.get(include_tokens)
        if known is not None:
            return known

        async def attempt(seconds_left: float) -> pb.GetTeacherResponse:
            request = pb.GetTeacherRequest(include_tokens=include_tokens)
            return await self._stub().GetTeacher(request, timeout=seconds_left, metadata=self._metadata)

        return self._remember(await self._call(attempt), include_tokens=include_tokens)

    async def answer(self, request: LogitsRequest) -> Answer:
        """Answer a request; one over the teacher's limits on sequences or tokens is asked in parts."""
        teacher = await self.describe()
        answers = [await self._answer_part(part) for part in self._parts(request, teacher)]
        return join_answers(answers, teacher.fingerprint)

    async def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        """Return what rebuilds the logits from a `Hidden` answer, as `TeacherClient.output_head` does."""
        async with self._fetching_head:
            if value_type not in self._heads:
                self._heads[value_type] = await self._call(partial(self._fetch_head, await self.describe(), value_type))
            return self._heads[value_type]

    async def logits(
        self,
        input_ids: TokenRows,
        *,
        encoding: Encoding | None = None,
        positions: Positions | None = None,
        temperature: float = 1.0,
        vocabulary_size: int = 0,
    ) -> tuple[Payload, ...]:
        """Ask about plain sequences of ids, as `TeacherLogitsProvider.logits` does."""
        request = plain_request(
            input_ids,
            encoding=encoding,
            positions=positions,
            temperature=temperature,
            vocabulary_size=vocabulary_size,
        )
        return (await self.answer(request)).payloads

    async def close(self) -> None:
        """Close the channel; calls still under way end with an error."""
        if self._channel is not None:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _stub(self) -> rpc.TeacherServiceAsyncStub:
        # Opened by the first call: a channel belongs to the event loop in which it is made.
        if self._channel is None:
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self.address, self._channel_options)
            else:
                self._channel = grpc.aio.secure_channel(self.address, self._credentials, self._channel_options)
        return rpc.TeacherServiceStub(self._channel)

    async def _answer_part(self, part: Part) -> Answer:
        message = request_to_proto(part.request)
        ask = self._ask if part.fits_one_message else partial(self._stream, part)
        return decode_answer(part, await self._call(partial(ask, message)))

    async def _ask(self, message: pb.LogitsRequest, seconds_left: float) -> RawAnswer:
        request = pb.ComputeLogitsRequest(request=message)
        return read_message(await self._stub().ComputeLogits(request, timeout=seconds_left, metadata=self._metadata))

    async def _stream(self, part: Part, message: pb.LogitsRequest, seconds_left: float) -> RawAnswer:
        reader = StreamReader(part)
        call = self._stub().StreamLogits(
            pb.StreamLogitsRequest(request=message), timeout=seconds_left, metadata=self._metadata
        )
        try:
            async for response in call:
                reader.take(response)
        finally:
            call.cancel()
        return reader.finish()

    async def _fetch_head(
        self, teacher: TeacherDescription, value_type: ValueType | None, seconds_left: float
    ) -> OutputHead:
        reader = self._head_reader(teacher, value_type)
        call = self._stub().GetOutputHead(reader.request, timeout=seconds_left, metadata=self._metadata)
        try:
            async for response in call:
                reader.take(response)
        finally:
            call.cancel()
        return reader.finish()

    async def _call(self, attempt: Callable[[float], Awaitable[_R]]) -> _R:
        """Return what `attempt` returns; it is given the seconds that are left to it."""
        deadline = time.monotonic() + self._timeout_seconds

        async def once() -> _R:
            try:
                return await attempt(max(deadline - time.monotonic(), _LEAST_TIMEOUT_SECONDS))
            except grpc.aio.AioRpcError as error:
                raise error_of(error, self.address) from error

        return await tenacity.AsyncRetrying(**self._retry_options())(once)
