"""The small teacher of `table_teacher` behind a real HTTP server: what the service's own door says of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn
from urllib.parse import parse_qs, urlsplit

import grpc

from stillhouse.answer_messages import RawAnswer, write_answer
from stillhouse.errors import TEACHER_ERROR_BY_NAME, OverloadedError
from stillhouse.http_forms import FINGERPRINT_HEADER, LOGITS_PATH, MESSAGE_TYPE, PAYLOAD_TYPE, TEACHER_PATH
from stillhouse.messages import value_type_to_proto
from stillhouse.status import ERROR_TRAILER, PUSHBACK_TRAILER
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service.http_door.problems import problem_of
from tests.integration.client.table_teacher import TableServicer

# Of a status that no class of ours stands behind, as a proxy would answer it.
_BARE = {"RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504, "UNAUTHENTICATED": 401}


# More than any answer here: that so much is announced is what a test is about.
_NO_ANSWERS_BYTES = 2**30


class _AbortedError(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class _Context:
    """What the servicer asks of a call."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers
        self.trailers: dict[str, str] = {}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self._headers.items())

    def set_trailing_metadata(self, pairs: tuple[tuple[str, str], ...]) -> None:
        self.trailers = dict(pairs)

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise _AbortedError(code, details)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    servicer: TableServicer
    _said: tuple[str, int] | None = None

    def do_GET(self) -> None:  # the name that http.server calls
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}

        def answer(context: Any) -> tuple[bytes, str]:
            if url.path == TEACHER_PATH:
                request = pb.GetTeacherRequest(include_tokens=asked["include_tokens"] == "true")
                return self.servicer.GetTeacher(request, context).SerializeToString(), MESSAGE_TYPE
            value_type: Any = asked.get("value_type")
            head = pb.GetOutputHeadRequest(value_type=value_type_to_proto(value_type))
            parts = list(self.servicer.GetOutputHead(head, context))
            if parts:
                # Here the answer's headers say it, over gRPC every chunk.
                self._said = parts[0].fingerprint, parts[0].total_bytes
            return b"".join(part.data for part in parts), PAYLOAD_TYPE

        self._answer(answer)

    def do_POST(self) -> None:  # as above
        body = self.rfile.read(int(self.headers["content-length"]))
        assert (self.path, self.headers["content-type"]) == (LOGITS_PATH, MESSAGE_TYPE)

        def answer(context: Any) -> tuple[bytes, str]:
            message = self.servicer.ComputeLogits(pb.ComputeLogitsRequest.FromString(body), context)
            raw = RawAnswer(list(message.payloads), message.fingerprint, message.timing, message.cache_hits)
            return write_answer(raw), MESSAGE_TYPE

        self._answer(answer)

    def _answer(self, answer: Any) -> None:
        context = _Context({name.lower(): value for name, value in self.headers.items()})
        try:
            data, kind = answer(context)
        except _AbortedError as aborted:
            self._refuse(context, aborted)
            return
        fingerprint, announced = self._said or (self.servicer.description.fingerprint, 0)
        self._send(200, {"content-type": kind, FINGERPRINT_HEADER: fingerprint}, data, announced)

    def _refuse(self, context: _Context, aborted: _AbortedError) -> None:
        error_class = TEACHER_ERROR_BY_NAME.get(context.trailers.get(ERROR_TRAILER, ""))
        if error_class is None:
            self._send(_BARE.get(aborted.code.name, 500), {"content-type": "text/plain"}, str(aborted).encode())
            return
        error = error_class(str(aborted))
        if isinstance(error, OverloadedError):
            error.retry_after_seconds = int(context.trailers[PUSHBACK_TRAILER]) / 1000
        response = problem_of(error)
        self._send(response.status_code, dict(response.headers), bytes(response.body))

    def _send(self, status: int, headers: dict[str, str], data: bytes, announced: int = 0) -> None:
        self.send_response(status)
        length = announced if announced > _NO_ANSWERS_BYTES else len(data)
        for name, value in ({**headers, "content-length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()
        # Whoever has seen enough has gone.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
        del format, args


@contextmanager
def serving_http(servicer: TableServicer) -> Iterator[str]:
    """Serve it on a free port of loopback; yields the address."""
    handler = type("Handler", (_Handler,), {"servicer": servicer})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
