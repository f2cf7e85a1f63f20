"""The HTTP door: translates and authorises, nothing else. Errors are problem details (RFC 9457).

Each request passes a gate. What it says in JSON is FastAPI's to read; the contract's own messages have a short way.

What decides an answer is in `teacher`; the status of each error stands beside its class in `stillhouse.errors`. The
parts of the door are in `http_door`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from stillhouse.errors import InvalidRequestError, TeacherError
from stillhouse.version import __version__
from teacher_service.admission import Admission
from teacher_service.http_door.bodies import Bodies
from teacher_service.http_door.description import describe
from teacher_service.http_door.gate import OPEN_PATHS, Gate
from teacher_service.http_door.message_door import MessageDoor, is_message
from teacher_service.http_door.problems import problem_of
from teacher_service.http_door.requests import field_of
from teacher_service.http_door.routes import Routes
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics
from teacher_service.page.routes import PageRoutes
from teacher_service.request_notes import RequestNotes

__all__ = ["OPEN_PATHS", "HttpDoor"]


class HttpDoor:
    """All that HTTP asks, each request behind a gate; `app` is what of it FastAPI answers."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        metrics: Metrics,
        admission: Admission,
        notes: RequestNotes,
        page: PageRoutes,
        *,
        max_body_bytes: int,
    ) -> None:
        gate = partial(Gate, admission=admission, metrics=metrics, notes=notes, bodies=Bodies(max_body_bytes))
        self._messages: ASGIApp = gate(MessageDoor(lifecycle, metrics))
        self.app = _build_app(gate, page, Routes(lifecycle, metrics, admission.access))

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await (self._messages if is_message(scope) else self.app)(scope, receive, send)


def _build_app(gate: Callable[..., ASGIApp], page: PageRoutes, routes: Routes) -> FastAPI:
    # The usual pages that show the API load scripts from elsewhere; /openapi.json is all that tools need.
    app = FastAPI(
        title="Stillhouse teacher", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(gate)
    app.add_exception_handler(TeacherError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_query)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.include_router(page.router())
    app.include_router(routes.router())
    # What FastAPI derives knows neither our problems nor that bodies are read by hand.
    app.openapi = cache(partial(describe, app))  # type: ignore[method-assign]  # its documented way
    return app


async def _on_error(_: Request, error: Exception) -> Response:
    return problem_of(error)


async def _on_invalid_query(_: Request, error: Exception) -> Response:
    errors = error.errors() if isinstance(error, RequestValidationError) else ()
    return problem_of(InvalidRequestError("; ".join(f"{field_of(one['loc'])}: {one['msg']}" for one in errors)))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return problem_of(error)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = [*(name.strip() for name in headers.get("Allow", "").split(",")), "OPTIONS"]
        headers = {"Allow": ", ".join([*allowed, *(["HEAD"] if "GET" in allowed else [])])}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        detail = f"{request.method} is not answered here; {headers['Allow']} are"
        return problem_of(HTTPException(405, detail, headers))
    if error.status_code == 404:
        return problem_of(HTTPException(404, "there is nothing at this path; /openapi.json lists what there is"))
    return problem_of(error)
