"""What HTTP answers on the plain port beside TLS: whether the service lives, whether it is ready, and the metrics.

Nothing here tells more than its status to whoever has no token, even where none is set: this port is for probes that
carry neither certificate nor secret, and for a scraper with its token.
"""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from stillhouse.errors import TeacherError, UnauthenticatedError
from teacher_service.auth import Access
from teacher_service.http_door.problems import problem_of
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics

ROUTES = ("/livez", "/readyz", "/metrics")


def build_plain_app(lifecycle: Lifecycle, metrics: Metrics, access: Access) -> ASGIApp:
    """Return the application: three routes, GET and HEAD, and nothing else."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            response = await _answer(Request(scope))
            await response(scope, receive, send)

    async def _answer(request: Request) -> Response:
        path = request.url.path
        if path not in ROUTES:
            return problem_of(HTTPException(404, f"this port answers {', '.join(ROUTES)} alone"))
        if request.method not in ("GET", "HEAD"):
            return problem_of(HTTPException(405, "GET and HEAD alone", {"allow": "GET, HEAD"}))
        if path == "/livez":
            return JSONResponse({"status": "alive"})
        if path == "/readyz":
            return JSONResponse({"status": lifecycle.phase}, 200 if lifecycle.phase == "ready" else 503)
        try:
            if access.is_open:
                raise UnauthenticatedError("metrics need a token on this port: set TEACHER_SCRAPE_TOKEN")
            access.check(request.headers.get("authorization"), "metrics")
        except TeacherError as error:
            metrics.refused.labels(type(error).__name__).inc()
            return problem_of(error)
        await metrics.refresh()
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app
