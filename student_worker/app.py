"""A worker's health, metrics and live page over HTTP, in a thread beside the training.

`/livez` says that the process answers, `/readyz` that it trains, `/metrics` is for Prometheus and `/` for people. Knows
nothing of training.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from stillhouse.errors import ConfigurationError
from student_worker.page.access import Access, Gate
from student_worker.page.page import RunPage
from student_worker.page.routes import PageRoutes

PORTS_TRIED = 64
"""How far from the asked port a free one is looked for, where several runs share a host."""

STOP_SECONDS = 5.0


def build_app(
    registry: CollectorRegistry, is_ready: Callable[[], bool], page: RunPage | None = None, token: str | None = None
) -> FastAPI:
    """Return the application; with a token set, all but health asks for it."""
    app = FastAPI(openapi_url=None)
    access = Access(token)
    app.add_middleware(Gate, access=access)
    if page is not None:
        app.include_router(PageRoutes(page, access).router())

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        ready = is_ready()
        response.status_code = 200 if ready else 503
        return {"status": "ok" if ready else "starting"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket on `port`, on the next one that is free, or for 0 on any.

    Raises:
        ConfigurationError: no port nearby is free, or the host is not this machine's.
    """
    last = min(port + PORTS_TRIED, 65_535) if port else 0
    for candidate in range(port, last + 1):
        try:
            return socket.create_server((host, candidate), backlog=128)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise ConfigurationError(f"http_host {host!r}, http_port {candidate}: {error.strerror}") from error
    raise ConfigurationError(f"http_port: none from {port} to {last} on {host} is free; name another, or 0 for any")


class HttpServer:
    """Serves an application until it is closed."""

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        self._listener = listener
        host, port = listener.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        # Signals belong to the trainer; uvicorn installs its handlers in the main thread only.
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        self._listener.close()
