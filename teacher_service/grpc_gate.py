"""Every gRPC call passes here: its token, its place among those in flight, its bounds in time, its status, its count.

No byte of a caller's message is read before the caller has a place. What a call means is in `servicer`; this knows
method names only as far as health checks are open to all.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext, suppress
from functools import cache
from typing import Any, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from stillhouse.errors import (
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    RequestTooLongError,
    TeacherError,
    TeacherTimeoutError,
    UnauthenticatedError,
)
from stillhouse.request_ids import REQUEST_ID_HEADER
from stillhouse.status import Status, status_of
from teacher_service.admission import Admission
from teacher_service.connections import close_connection
from teacher_service.hearing import Hearing
from teacher_service.metrics import Metrics
from teacher_service.request_notes import RequestNotes, note_caller

HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
OPEN_METHODS = frozenset(f"/{HEALTH_NAME}/{name}" for name in ("Check", "List", "Watch"))
"""What needs no token."""

_HEALTH_NAMES = frozenset(method.rpartition("/")[2] for method in OPEN_METHODS)
_WATCH = f"/{HEALTH_NAME}/Watch"
# A watcher costs a stream for as long as it likes and needs no token; a probe asks with Check.
_MAX_WATCHERS = 64

# Slower than this a caller does not take an answer in one message; larger ones are streamed.
_SLOWEST_BYTES_PER_SECOND = 2**18

# A status waits behind an answer that is not read.
_STATUS_SECONDS = 1.0

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic to its stubs alone

logger = structlog.get_logger(__name__)


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic to its stubs alone
    """Lets a call through to its handler, or answers it with what it may not have."""

    def __init__(
        self, admission: Admission, metrics: Metrics, notes: RequestNotes, *, send_stall_seconds: float
    ) -> None:
        self._admission = admission
        self._metrics = metrics
        # Methods and codes are few, and to look their counters up takes longer than to count.
        self._requests = cache(metrics.requests.labels)
        self._request_duration = cache(metrics.request_duration.labels)
        self._notes = notes
        self._handlers: dict[str, Handler] = {}
        self._send_stall_seconds = send_stall_seconds
        self.num_watchers = 0
        self._hearing = Hearing(metrics)
        self.port = 0
        """Where the server listens, once it does."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the handler of a call, behind the gate; a method that does not exist is refused like any other."""
        method = handler_call_details.method
        if method in self._handlers:
            return self._handlers[method]
        # None where there is no such method; the stubs do not know that.
        handler: Handler | None = await continuation(handler_call_details)
        name = method.rpartition("/")[2]
        if handler is None:
            # Whoever has no token does not even learn what exists.
            return self._behind(grpc.unary_unary_rpc_method_handler(cast("Any", _unknown)), "other", self._admitted)
        if method in OPEN_METHODS:
            entering = self._watching if method == _WATCH else nullcontext
            behind = self._behind(handler, name, lambda *_: entering(), self._hearing.reading)
        else:
            behind = self._behind(handler, name, self._admitted)
        self._handlers[method] = behind
        return behind

    def _behind(
        self,
        handler: Handler,
        name: str,
        entering: Callable[[Context, _Call], AbstractAsyncContextManager[None]],
        hearing: Callable[[], AbstractAsyncContextManager[int | None]] = nullcontext,
    ) -> Handler:
        """Return `handler` with everything that holds for every call around it, and `hearing` around its reading.

        As one that takes a stream of requests, whatever it is: on the wire they look the same, and gRPC then leaves
        the reading to us.
        """
        # One of the four kinds is set. The stubs type them for the threaded server alone.
        behaviour: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        read = handler.request_deserializer or _as_it_is
        write = handler.response_serializer or _as_it_is

        async def asked(requests: AsyncIterator[bytes]) -> Any:
            if handler.request_streaming:
                return _each(requests, read)
            async with hearing() as max_bytes:
                return await _only(requests, read, max_bytes)

        async def answer_once(requests: AsyncIterator[bytes], context: Context) -> Any:
            answer = None
            async with self._counted(name, context) as call, entering(context, call):
                answer = write(await behaviour(await asked(requests), context))
                self._expect_sent(context, len(answer))
            await call.tell(context)
            return answer

        async def answer_with_many(requests: AsyncIterator[bytes], context: Context) -> None:
            async with self._counted(name, context) as call, entering(context, call):
                answering = behaviour(await asked(requests), context)
                sends_itself = not inspect.isasyncgen(answering)
                await (answering if sends_itself else self._send_all(context, answering))
            await call.tell(context)

        if handler.response_streaming:
            # What it sends itself passes by here, so that gRPC has to write it.
            return grpc.stream_stream_rpc_method_handler(cast("Any", answer_with_many), None, write)
        return grpc.stream_unary_rpc_method_handler(cast("Any", answer_once), None, None)

    @asynccontextmanager
    async def _admitted(self, context: Context, call: _Call) -> AsyncIterator[None]:
        place = self._admission.enter(call.authorization)
        # Not at the end of the block: until its last byte has gone, an answer is in flight.
        context.add_done_callback(cast("Any", lambda _: place.leave()))
        async with self._admission.bounded():
            # gRPC gives each call a task, and so a context, of its own: nothing has to be unbound.
            structlog.contextvars.bind_contextvars(caller=place.caller.name)
            note_caller(place.caller.name)
            yield

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        if self.num_watchers >= _MAX_WATCHERS:
            self._metrics.shed.labels("watchers").inc()
            raise OverloadedError(f"{_MAX_WATCHERS} callers watch the health, the most; ask with Check", 5.0)
        self.num_watchers += 1
        try:
            yield
        finally:
            self.num_watchers -= 1

    async def _send_all(self, context: Context, answering: AsyncGenerator[Any, None]) -> None:
        async with aclosing(answering) as messages:
            async for message in messages:
                await self._send(context, message)

    async def _send(self, context: Context, message: Any) -> None:
        try:
            async with asyncio.timeout(self._send_stall_seconds) as bound:
                await context.write(message)
        except grpc.aio.InternalError as error:
            # The connection broke under the write: the caller has gone, which gRPC says a moment later.
            raise asyncio.CancelledError from error
        except TimeoutError as error:
            if not bound.expired():
                raise
            self._drop(context)
            # With the connection gone gRPC cancels this call; where that could not be closed, it has a status.
            await asyncio.sleep(_STATUS_SECONDS)
            raise TeacherTimeoutError(
                f"the answer was given up: none of it was read for {self._send_stall_seconds:g} s"
            ) from error

    def _expect_sent(self, context: Context, num_bytes: int) -> None:
        """Give up an answer in one message, which gRPC sends when this call has returned, if it does not leave."""
        seconds = self._send_stall_seconds + num_bytes / _SLOWEST_BYTES_PER_SECOND
        timer = asyncio.get_running_loop().call_later(seconds, self._drop, context)
        context.add_done_callback(cast("Any", lambda _: timer.cancel()))

    def _drop(self, context: Context) -> None:
        self._metrics.shed.labels("not_read").inc()
        logger.warning("answer_not_read", closed=close_connection(context.peer(), self.port))

    @asynccontextmanager
    async def _counted(self, method: str, context: Context) -> AsyncIterator[_Call]:
        """Count a call and note it; whatever it raises becomes its status."""
        metadata = {key: _text(value) or "" for key, value in context.invocation_metadata() or ()}
        given = metadata.get(REQUEST_ID_HEADER)
        with self._notes.taking(method, given, metadata, is_shown=method not in _HEALTH_NAMES) as note:
            context.set_trailing_metadata(((REQUEST_ID_HEADER, note.request_id),))
            started = time.monotonic()
            call = _Call(note.request_id, metadata.get("authorization"))
            code = grpc.StatusCode.OK
            try:
                yield call
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except grpc.aio.AbortError:
                # Its own words have been said: health and reflection know no errors of ours.
                code = context.code()
                raise
            except Exception as error:
                if isinstance(error, UnauthenticatedError | PermissionDeniedError):
                    self._metrics.refused.labels(type(error).__name__).inc()
                elif not isinstance(error, TeacherError):
                    logger.exception("call_failed", method=method)
                call.status = status_of(error)
                code = call.status.code
            finally:
                note.code = code.name
                self._requests(method, code.name).inc()
                self._request_duration(method).observe(time.monotonic() - started)


class _Call:
    """Who makes a call, and how it has failed, told apart from where it did.

    gRPC ends a call by an exception that it keeps beside the call, so that both live until Python looks for cycles,
    with all that the exception's frames hold: from where a call fails, that would be its message.
    """

    status: Status | None = None

    def __init__(self, request_id: str, authorization: str | None) -> None:
        self._request_id = request_id
        self.authorization = authorization

    async def tell(self, context: Context) -> None:
        """End the call with its status."""
        if self.status is not None:
            named = (REQUEST_ID_HEADER, self._request_id)
            context.set_trailing_metadata((*self.status.trailing_metadata, named))
            with suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_SECONDS):
                    await context.abort(self.status.code, self.status.message)


async def _only(requests: AsyncIterator[bytes], read: Callable[[bytes], Any], max_bytes: int | None) -> Any:
    async for data in requests:
        if max_bytes is not None and len(data) > max_bytes:
            raise RequestTooLongError(f"the message has {len(data)} bytes, over the limit of {max_bytes}")
        return _message(data, read)
    raise InvalidRequestError("the call held no message")


async def _each(requests: AsyncIterator[bytes], read: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for data in requests:
        yield _message(data, read)


def _message(data: bytes, read: Callable[[bytes], Any]) -> Any:
    try:
        return read(data)
    except DecodeError as error:
        # gRPC itself would call what cannot be read a fault of ours.
        raise InvalidRequestError(f"the message of {len(data)} bytes is none of this method's") from error


def _as_it_is(data: bytes) -> bytes:
    return data


async def _unknown(_: object, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")


def _text(value: str | bytes | None) -> str | None:
    return value.decode("latin-1") if isinstance(value, bytes) else value
