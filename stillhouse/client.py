"""TeacherClient: a teacher behind gRPC, as a `TeacherLogitsProvider`. The same for asyncio is in `async_client`.

Every answer is checked before it is handed out (see `exchange`), and every error is the one that the service meant
(see `status`). A call has a deadline, and is tried again, within bounds (see `retries`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, cast

import grpc
import tenacity

from stillhouse.answer_messages import RawAnswer, read_answer, read_stream_message
from stillhouse.async_client import AsyncTeacherClient
from stillhouse.client_base import ClientBase
from stillhouse.cutting import Part, join_answers
from stillhouse.encodings import ValueType
from stillhouse.errors import StillhouseError, TeacherTimeoutError
from stillhouse.exchange import COMPUTE_LOGITS, STREAM_LOGITS, StreamReader, checked_message, decode_answer
from stillhouse.messages import request_to_proto
from stillhouse.payloads import OutputHead
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, TeacherDescription
from stillhouse.request_ids import naming_errors, request_id
from stillhouse.retries import LEAST_TIMEOUT_SECONDS, Retries
from stillhouse.status import FailedCall, error_of
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as rpc
from stillhouse.tracing import span

_R = TypeVar("_R")

__all__ = ["AsyncTeacherClient", "TeacherClient"]


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
        self._compute_logits = self._channel.unary_unary(
            COMPUTE_LOGITS, pb.ComputeLogitsRequest.SerializeToString, read_answer
        )
        self._stream_logits = self._channel.unary_stream(
            STREAM_LOGITS, pb.StreamLogitsRequest.SerializeToString, read_stream_message
        )
        self._describing = threading.Lock()
        self._fetching_head = threading.Lock()

    def describe(self, *, include_tokens: bool = False) -> TeacherDescription:
        """Return what is served; asked once, and with `include_tokens` once more."""
        known = self._descriptions.get(include_tokens)
        if known is not None:
            return known
        with self._held(self._describing):
            known = self._descriptions.get(include_tokens)
            if known is not None:
                return known
            attempt = partial(self._describe, pb.GetTeacherRequest(include_tokens=include_tokens))
            return self._remember(self._call(attempt), include_tokens=include_tokens)

    def answer(self, request: LogitsRequest) -> Answer:
        """Answer a request; one over the teacher's limits on sequences, tokens or bytes is asked in parts."""
        teacher = self.describe()
        parts = self._parts(request, teacher)
        return join_answers(parts, [self._answer_part(part) for part in parts], teacher.fingerprint)

    def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        """Return what rebuilds the logits from a `Hidden` answer; fetched once for each value type.

        `value_type` is "float32" or "bfloat16"; None is what the teacher computes in. The tensors are shared by all
        who ask: they are read, never changed.
        """
        with self._held(self._fetching_head):
            if value_type not in self._heads:
                self._heads[value_type] = self._call(partial(self._fetch_head, self.describe(), value_type))
            return self._heads[value_type]

    def close(self) -> None:
        """Close the channel; calls still under way end with an error."""
        self._is_closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _describe(self, request: pb.GetTeacherRequest, seconds_left: float) -> pb.GetTeacherResponse:
        return checked_message(self._stub.GetTeacher(request, timeout=seconds_left, metadata=self._metadata))

    def _answer_part(self, part: Part) -> Answer:
        message = request_to_proto(part.request)
        ask = self._ask if part.fits_one_message else partial(self._stream, part)
        # Decoded within the attempt: damaged bytes are a reason to ask again.
        return self._call(lambda seconds_left: decode_answer(part, ask(message, seconds_left)))

    def _ask(self, message: pb.LogitsRequest, seconds_left: float) -> RawAnswer:
        request = pb.ComputeLogitsRequest(request=message)
        answer: RawAnswer | None = self._compute_logits(request, timeout=seconds_left, metadata=self._metadata)
        return checked_message(answer)

    def _stream(self, part: Part, message: pb.LogitsRequest, seconds_left: float) -> RawAnswer:
        reader = StreamReader(part)
        request = pb.StreamLogitsRequest(request=message)
        call = self._stream_logits(request, timeout=seconds_left, metadata=self._metadata)
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

    @contextmanager
    def _held(self, lock: threading.Lock) -> Iterator[None]:
        if not lock.acquire(timeout=self._timeout_seconds):
            raise TeacherTimeoutError(self._still_asked())
        try:
            yield
        finally:
            lock.release()

    def _call(self, attempt: Callable[[float], _R]) -> _R:
        """Return what `attempt` returns; it is given the seconds that are left to it."""
        deadline = time.monotonic() + self._timeout_seconds

        def once() -> _R:
            self._check_usable()
            try:
                return attempt(max(deadline - time.monotonic(), LEAST_TIMEOUT_SECONDS))
            except grpc.RpcError as error:
                self._check_usable()  # closed meanwhile: not the teacher's fault, and not to be tried again
                raise error_of(cast("FailedCall", error), self.address) from error

        # One id for all attempts: the teacher's log then shows them together.
        with request_id() as name, naming_errors(name), span("teacher call", request_id=name):
            try:
                return once()
            except StillhouseError as error:
                again = Retries.resuming(error, once)
            return tenacity.Retrying(**self._new_retries(deadline - time.monotonic()).options())(again)
