"""The calls of the contract over HTTP; those over gRPC are in `grpc_calls`.

Bodies are the contract's messages. Each call raises what the service meant, or `TeacherUnavailableError` where nobody
answers. Several threads may share one `HttpCalls`.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import numpy as np
from google.protobuf.message import DecodeError

from stillhouse.answer_messages import RawAnswer
from stillhouse.answer_reading import receive_answer
from stillhouse.calls import Metadata
from stillhouse.cutting import Part
from stillhouse.errors import (
    CodecError,
    StillhouseError,
    TeacherInternalError,
    TeacherTimeoutError,
    TeacherUnavailableError,
)
from stillhouse.head_exchange import HeadReader
from stillhouse.http_address import HttpAddress
from stillhouse.http_connection import Connections, Ongoing
from stillhouse.http_forms import (
    FINGERPRINT_HEADER,
    LOGITS_PATH,
    MESSAGE_TYPE,
    OUTPUT_HEAD_PATH,
    PAYLOAD_TYPE,
    TEACHER_PATH,
)
from stillhouse.http_response import HttpError, Response
from stillhouse.messages import request_to_proto
from stillhouse.payloads import OutputHead
from stillhouse.refusals import MAX_REFUSAL_BYTES, error_of_refusal
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

# A description with the tokens of the largest vocabularies has some megabytes.
_MAX_DESCRIPTION_BYTES = 64 * 2**20


class HttpCalls:
    """Calls to one teacher."""

    def __init__(self, address: str, context: ssl.SSLContext | None) -> None:
        """Name a teacher; nothing is sent yet. `context` is of its TLS; None is what this machine trusts.

        Raises:
            ConfigurationError: an address that is none.
        """
        self._name = address
        where = HttpAddress.of(address)
        if where.is_secure and context is None:
            context = ssl.create_default_context()
        self._connections = Connections(where, context if where.is_secure else None)

    def describe(
        self, *, include_tokens: bool, seconds: float, metadata: Metadata, ongoing: Ongoing | None = None
    ) -> pb.GetTeacherResponse:
        """Ask what is served."""
        path = f"{TEACHER_PATH}?include_tokens={str(include_tokens).lower()}"
        with self._asking("GET", path, None, MESSAGE_TYPE, seconds, metadata, ongoing) as response:
            try:
                return pb.GetTeacherResponse.FromString(bytes(response.read(_MAX_DESCRIPTION_BYTES)))
            except DecodeError as error:
                raise CodecError("the description is no message of the contract: it was altered on its way") from error

    def answer(self, part: Part, *, seconds: float, metadata: Metadata, ongoing: Ongoing | None = None) -> RawAnswer:
        """Ask about a part of a request, and read its answer whole."""
        body = pb.ComputeLogitsRequest(request=request_to_proto(part.request)).SerializeToString()
        with self._asking("POST", LOGITS_PATH, body, MESSAGE_TYPE, seconds, metadata, ongoing) as response:
            return receive_answer(response, part.headers)

    def output_head(
        self, reader: HeadReader, *, seconds: float, metadata: Metadata, ongoing: Ongoing | None = None
    ) -> OutputHead:
        """Fetch the output head."""
        path = f"{OUTPUT_HEAD_PATH}?{reader.query}"
        with self._asking("GET", path, None, PAYLOAD_TYPE, seconds, metadata, ongoing) as response:
            num_bytes = response.num_bytes or 0
            reader.expect(response.headers.get(FINGERPRINT_HEADER, ""), num_bytes)
            data = np.empty(num_bytes, np.uint8).data
            response.fill([data])
            return reader.read(data)

    def close(self) -> None:
        """Close the connections; calls under way fail."""
        self._connections.close()

    @contextmanager
    def _asking(
        self,
        method: str,
        path: str,
        body: bytes | None,
        media_type: str,
        seconds: float,
        metadata: Metadata,
        ongoing: Ongoing | None,
    ) -> Iterator[Response]:
        headers = {"accept": media_type, **dict(metadata)}
        if body is not None:
            headers["content-type"] = media_type
        deadline = time.monotonic() + seconds
        try:
            with self._connections.response(method, path, body, headers, deadline, ongoing or Ongoing()) as response:
                self._check(response, media_type)
                yield response
        except StillhouseError:
            raise
        except TimeoutError as error:
            raise TeacherTimeoutError(f"teacher {self._name}: no answer within {seconds:.1f} s") from error
        except (OSError, HttpError) as error:
            reason = str(error) or type(error).__name__
            raise TeacherUnavailableError(f"teacher {self._name}: {reason}") from error

    def _check(self, response: Response, media_type: str) -> None:
        given = response.headers
        if response.status != HTTPStatus.OK:
            body = bytes(response.read(MAX_REFUSAL_BYTES))
            raise error_of_refusal(response.status, given.get("retry-after"), body, self._name)
        if given.get("content-type", "").partition(";")[0].strip().lower() != media_type:
            raise TeacherInternalError(
                f"teacher {self._name}: answered with {given.get('content-type')!r}, where {media_type} was asked for: "
                "is it the HTTP door of a teacher of this release?"
            )
