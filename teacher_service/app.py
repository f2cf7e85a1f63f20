"""The HTTP door: translates and authorises, nothing else. Errors are problem details (RFC 9457).

What decides an answer is in `teacher`; the status of each error stands beside its class in `stillhouse.errors`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from stillhouse.errors import (
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    RequestTooLongError,
    TeacherError,
    TeacherInternalError,
    UnauthenticatedError,
)
from stillhouse.version import __version__
from teacher_service.admission import Admission
from teacher_service.auth import Access
from teacher_service.http_messages import (
    LogitsIn,
    LogitsOut,
    answer_to_json,
    description_to_json,
    value_error_message,
)
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics

OPEN_PATHS = frozenset({"/livez", "/readyz"})
_COUNTED_PATHS = frozenset({*OPEN_PATHS, "/metrics", "/v1/teacher", "/v1/logits", "/openapi.json"})

# JSON spends about so many characters on a number; binary answers go over gRPC.
_JSON_CHARACTERS_A_VALUE = 12
_MAX_JSON_CHARACTERS = 32 * 2**20

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {"description": "A problem (RFC 9457).", "content": {"application/problem+json": {}}}
}

logger = structlog.get_logger(__name__)


def build_app(lifecycle: Lifecycle, metrics: Metrics, admission: Admission, *, max_body_bytes: int) -> FastAPI:
    """Return the application with every route behind the gate."""
    access = admission.access
    # The usual pages that show the API load scripts from elsewhere; /openapi.json is all that tools need.
    app = FastAPI(title="Stillhouse teacher", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, admission=admission, metrics=metrics, max_body_bytes=max_body_bytes)
    app.add_exception_handler(Exception, _on_fault)
    app.add_exception_handler(TeacherError, _on_teacher_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_body)
    app.add_exception_handler(HTTPException, _on_http_exception)

    @app.get("/livez", summary="Is the process alive?")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Are requests accepted?", responses=_PROBLEMS)
    async def readyz(request: Request) -> JSONResponse:
        content: dict[str, str] = {"status": lifecycle.phase}
        if lifecycle.phase == "ready" and _may_see_detail(access, request):
            teacher = lifecycle.teacher
            content |= {"model": teacher.description.model, "cache": teacher.cache_state}
        elif lifecycle.phase == "loading" and _may_see_detail(access, request):
            content["progress"] = str(lifecycle.progress)
        return JSONResponse(content, status_code=200 if lifecycle.phase == "ready" else 503)

    @app.get("/metrics", summary="Prometheus metrics.", response_class=Response)
    async def metrics_page() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/teacher", summary="What is served, and within which limits.", responses=_PROBLEMS)
    async def teacher(include_tokens: bool = False) -> dict[str, Any]:
        return description_to_json(lifecycle.teacher.description, include_tokens=include_tokens)

    @app.post("/v1/logits", summary="Ask about sequences.", response_model=LogitsOut, responses=_PROBLEMS)
    async def logits(body: LogitsIn) -> Response:
        request = body.to_request()
        teacher = lifecycle.teacher
        size = teacher.check(request)
        if size // 4 * _JSON_CHARACTERS_A_VALUE > _MAX_JSON_CHARACTERS:
            raise RequestTooLongError(
                f"sequences: their answer would have about {size} bytes before it is written as JSON, over the limit "
                f"of {_MAX_JSON_CHARACTERS * 4 // _JSON_CHARACTERS_A_VALUE}; ask over gRPC, or for less"
            )
        async with teacher.answering(request) as answer:
            metrics.response_bytes.labels(type(request.encoding).__name__).inc(answer.num_bytes)
            text = await asyncio.to_thread(answer_to_json, request, answer)
        return Response(text, media_type="application/json")

    return app


class Gate:
    """Every request passes here first: its token, the length of its body, and its place in the metrics."""

    def __init__(self, app: ASGIApp, admission: Admission, metrics: Metrics, max_body_bytes: int) -> None:
        self._app = app
        self._admission = admission
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with its problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        path, status, has_begun = scope["path"], 500, False

        async def send_counted(message: Any) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
            await send(message)

        try:
            async with self._admitted(scope, path):
                self._check_length(scope)
                await self._app(scope, receive, send_counted)
        except TeacherError as error:
            self._count_refusal(error)
            if has_begun:
                # Half an answer is on its way: returning closes the connection, which is all that is left to say.
                return
            await _problem(error)(scope, receive, send_counted)
        finally:
            # Names that a caller makes up must not become series.
            known = path in _COUNTED_PATHS and scope["method"] in ("GET", "POST")
            method = f"{scope['method']} {path}" if known else "other"
            self._metrics.requests.labels(method, str(status)).inc()
            self._metrics.request_duration.labels(method).observe(time.monotonic() - started)

    @asynccontextmanager
    async def _admitted(self, scope: Scope, path: str) -> AsyncIterator[None]:
        """Hold the caller's place; health and metrics need none, so that they answer in any weather."""
        if path in OPEN_PATHS:
            yield
            return
        authorization = _header(scope, b"authorization")
        if path == "/metrics":
            self._admission.access.check(authorization, "metrics")
            yield
            return
        async with self._admission.admit(authorization) as caller:
            with structlog.contextvars.bound_contextvars(caller=caller.name):
                yield

    def _count_refusal(self, error: TeacherError) -> None:
        if isinstance(error, UnauthenticatedError | PermissionDeniedError):
            self._metrics.refused.labels(type(error).__name__).inc()

    def _check_length(self, scope: Scope) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        length = headers.get(b"content-length", "0")
        if b"transfer-encoding" in headers or not length.isdecimal():
            raise InvalidRequestError("content-length must be sent: a body of unknown length is not read")
        if int(length) > self._max_body_bytes:
            raise RequestTooLongError(
                f"content-length: {length} is over this teacher's limit of {self._max_body_bytes} bytes"
            )


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), None)


def _may_see_detail(access: Access, request: Request) -> bool:
    try:
        access.check(request.headers.get("authorization"), "metrics")
    except TeacherError:
        return False
    return True


def _problem(error: TeacherError) -> JSONResponse:
    headers = {}
    if isinstance(error, UnauthenticatedError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, OverloadedError):
        headers["retry-after"] = str(math.ceil(error.retry_after_seconds))
    name = type(error).__name__
    content = {
        "type": f"urn:stillhouse:error:{name}",
        "title": name.removesuffix("Error"),
        "status": error.http_status,
        "detail": str(error),
    }
    return JSONResponse(content, error.http_status, headers, "application/problem+json")


async def _on_teacher_error(_: Request, error: Exception) -> Response:
    return _problem(error) if isinstance(error, TeacherError) else await _on_fault(_, error)


async def _on_invalid_body(_: Request, error: Exception) -> Response:
    errors = error.errors() if isinstance(error, RequestValidationError) else ()
    return _problem(InvalidRequestError(value_error_message(iter(errors))))


async def _on_http_exception(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else "fault"
    headers = error.headers if isinstance(error, HTTPException) else None
    content = {"type": "about:blank", "title": detail, "status": status}
    return JSONResponse(content, status, dict(headers or {}), "application/problem+json")


async def _on_fault(_: Request, error: Exception) -> Response:
    logger.error("request_failed", exc_info=error)
    return _problem(TeacherInternalError("an internal fault of the teacher service; its log says more"))
