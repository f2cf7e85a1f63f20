"""Requests and answers as the contract's own messages over HTTP: what a `TeacherClient` of an http address speaks.

`POST /v1/logits` with a `ComputeLogitsRequest` is answered with a `ComputeLogitsResponse`, its payloads handed to the
socket where they lie. Behind a gate like all else, but not in FastAPI, which would take longer than most of what a
small answer needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from functools import cache

from google.protobuf.message import DecodeError
from starlette.types import Receive, Scope, Send

from stillhouse.answer_messages import Buffer, answer_parts
from stillhouse.errors import InvalidRequestError, RequestTooLongError
from stillhouse.http_forms import LOGITS_PATH, MAX_MESSAGE_BYTES, MESSAGE_TYPE
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service.answering import EncodedAnswer
from teacher_service.http_door.bodies import header
from teacher_service.http_door.negotiation import choose, require_as_it_is
from teacher_service.http_door.wire import wire_of
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics
from teacher_service.request_reading import RequestReader

# Smaller parts are joined: each that is sent costs some microseconds.
_JOINED_BYTES = 2**16

# Beside the payloads a message holds field tags, timing and the fingerprint.
_MOST_PAYLOAD_BYTES = MAX_MESSAGE_BYTES - 2**20


class MessageDoor:
    """Answers requests that are messages; for one event loop."""

    def __init__(self, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self._lifecycle = lifecycle
        self._response_bytes = cache(metrics.response_bytes.labels)
        self._reader = RequestReader()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, of those for which `is_message` holds."""
        accept = header(scope, "accept")
        if accept != MESSAGE_TYPE:
            choose(accept, (MESSAGE_TYPE,))
        require_as_it_is(header(scope, "content-encoding"))
        body: bytes = (await receive())["body"]
        try:
            message = pb.ComputeLogitsRequest.FromString(body)
        except DecodeError as error:
            raise InvalidRequestError(f"the body of {len(body)} bytes is no ComputeLogitsRequest") from error
        teacher = self._lifecycle.teacher
        request = await self._reader.read(message.request, teacher.description.limits)
        asked = teacher.check(request)
        if asked.most_bytes > _MOST_PAYLOAD_BYTES:
            raise RequestTooLongError(
                f"sequences: their answer would have {asked.most_bytes} bytes, over the limit of one message of "
                f"{_MOST_PAYLOAD_BYTES}; send several requests, or ask over gRPC with StreamLogits"
            )
        async with teacher.answering(asked) as answer:
            self._response_bytes(type(request.encoding).__name__).inc(answer.num_bytes)
            await _send(answer, scope, send)


async def _send(answer: EncodedAnswer, scope: Scope, send: Send) -> None:
    parts = answer_parts(answer.raw())
    headers = [(b"content-type", MESSAGE_TYPE.encode()), (b"content-length", b"%d" % sum(map(len, parts)))]
    wire = wire_of(scope)
    wire.hold_head()
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await wire.write(list(_joined(parts)))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _joined(parts: SequenceOf[Buffer]) -> Iterator[Buffer]:
    """Yield the same bytes: small parts joined, large ones as they are."""
    held: list[Buffer] = []
    size = 0
    for part in parts:
        if held and size + len(part) > _JOINED_BYTES:
            yield b"".join(held)
            held, size = [], 0
        if len(part) > _JOINED_BYTES:
            yield part
        else:
            held.append(part)
            size += len(part)
    if held:
        yield b"".join(held)


def is_message(scope: Scope) -> bool:
    """Return whether a request is one for `MessageDoor`."""
    if scope["type"] != "http" or scope["path"] != LOGITS_PATH or scope["method"] != "POST":
        return False
    return (header(scope, "content-type") or "").partition(";")[0].strip().lower() == MESSAGE_TYPE
