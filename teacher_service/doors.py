"""Both doors of a service and, with TLS, the plain port beside them: bound before anything loads, closed together.

With front processes the gRPC door is theirs.

Knows what listens where; who may come in is in `admission`, and what is answered in `servicer` and `app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from functools import partial
from pathlib import Path

import structlog

from teacher_service.addresses import address_of, bind, bind_unix, is_loopback
from teacher_service.admission import Admission
from teacher_service.answering import HeadGiving
from teacher_service.app import HttpDoor
from teacher_service.fronts.supervisor import Fronts
from teacher_service.grpc_door import GrpcDoor
from teacher_service.http_server import HttpServer
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics
from teacher_service.page.history import History
from teacher_service.page.routes import PageRoutes
from teacher_service.plain_app import build_plain_app
from teacher_service.plain_port import PlainPort
from teacher_service.request_notes import RequestNotes
from teacher_service.settings import TeacherSettings
from teacher_service.teacher import Teacher
from teacher_service.tls import Tls

# How long what has been decided already (statuses, last bytes) may take to leave.
LAST_WORDS_SECONDS = 2.0

logger = structlog.get_logger(__name__)


class Doors:
    """What listens; for one event loop. The ports are those that were bound; `plain_port` is 0 without TLS."""

    def __init__(
        self,
        settings: TeacherSettings,
        lifecycle: Lifecycle,
        metrics: Metrics,
        admission: Admission,
        tls: Tls | None,
        history: History,
        redis_url: str | None,
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._is_open_to_all = admission.access.is_open and settings.tls_client_ca is None
        notes = RequestNotes(settings.log_requests_over_seconds)
        self._grpc = GrpcDoor(lifecycle, metrics, admission, notes, settings)
        has_fronts = settings.front_processes > 0
        self.fronts = Fronts(settings, redis_url, admission.access, metrics, notes) if has_fronts else None
        """The processes that have the gRPC door instead of this one."""
        server = partial(
            HttpServer,
            max_connections=settings.max_connections,
            send_stall_seconds=settings.send_stall_seconds,
            close_seconds=LAST_WORDS_SECONDS,
        )
        page = PageRoutes(lifecycle, metrics, admission.access, settings, notes, history)
        size = settings.max_http_body_bytes
        self.http_door = HttpDoor(lifecycle, metrics, admission, notes, page, max_body_bytes=size)
        self._http = server(self.http_door, tls=None if tls is None else tls.http_context())
        self._plain_http = server(build_plain_app(lifecycle, metrics, admission.access))
        self._plain: PlainPort | None = None
        self._folder = contextlib.ExitStack()
        self.grpc_port = self.http_port = self.plain_port = 0

    async def open(self) -> None:
        """Bind every port and answer health checks.

        Raises:
            ConfigurationError: a port is taken, or the address is none of this machine's.
        """
        host, settings = self._settings.host, self._settings
        with contextlib.ExitStack() as undo:
            http_socket = bind(host, settings.http_port, "http_port")
            undo.callback(http_socket.close)
            self.http_port = http_socket.getsockname()[1]
            if self.fronts is None:
                # gRPC says on stderr, at length, what this says in one line.
                bind(host, settings.grpc_port, "grpc_port").close()
            if self._tls is not None:
                plain_socket = bind(host, settings.plain_port, "plain_port")
                undo.callback(plain_socket.close)
                self.plain_port = plain_socket.getsockname()[1]
            if self.fronts is None:
                credentials = None if self._tls is None else self._tls.grpc_credentials()
                self.grpc_port = await self._grpc.open(address_of(host, settings.grpc_port), credentials)
            else:
                self.grpc_port = await self.fronts.open(host, settings.grpc_port)
            if self._tls is not None:
                # A Unix socket's path has at most 108 bytes; a folder of the system's own choice stays below that.
                folder = Path(self._folder.enter_context(tempfile.TemporaryDirectory(prefix="stillhouse-")))
                await self._grpc.open_health(folder / "grpc")
                self._plain_http.open(bind_unix(folder / "http"))
                self._plain = PlainPort(folder / "grpc", folder / "http")
                await self._plain.open(plain_socket)
            self._http.open(http_socket)
            undo.pop_all()
        self._announce(is_wide=not is_loopback(http_socket))

    async def begin(self, teacher: Teacher, heads: HeadGiving) -> None:
        """Accept requests in the fronts; those that come into this process ask `lifecycle` for the teacher."""
        if self.fronts is not None:
            await self.fronts.begin(teacher, heads)

    async def set_serving(self) -> None:
        """Say to health checks that requests are accepted."""
        await self._grpc.set_serving(serving=True)

    async def drain(self) -> None:
        """Accept nothing new, and say so to health checks."""
        if self.fronts is not None:
            self.fronts.drain()
        await self._grpc.set_serving(serving=False)

    async def wait_until_empty(self, seconds: float) -> bool:
        """Wait until nothing is in flight in the fronts, for at most so long; return whether that came."""
        return self.fronts is None or await self.fronts.wait_until_empty(seconds)

    def end(self) -> None:
        """Give up what is in flight in the fronts."""
        if self.fronts is not None:
            self.fronts.end()

    async def failed(self) -> None:
        """Wait until the doors cannot go on, which those of one process always can.

        Raises:
            StillhouseError: the fronts cannot.
        """
        await (asyncio.Event().wait() if self.fronts is None else self.fronts.failed())

    async def close(self) -> None:
        """Close all, HTTP last: until all else has ended, /livez and /readyz say how it stands."""
        if self.fronts is not None:
            await self.fronts.close(2 * LAST_WORDS_SECONDS)
        await self._grpc.close(LAST_WORDS_SECONDS)
        if self._plain is not None:
            await self._plain.close()
        await self._plain_http.close()
        await self._http.close()
        self._folder.close()

    def addresses(self) -> dict[str, str]:
        """Return where each door can be reached from this machine."""
        host = self._settings.host if self._settings.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104 - compared, not bound to
        return self._named(host)

    def _named(self, host: str) -> dict[str, str]:
        scheme = "http" if self._tls is None else "https"
        plain = {} if self._tls is None else {"plain": f"http://{address_of(host, self.plain_port)}"}
        http = f"{scheme}://{address_of(host, self.http_port)}"
        return {"grpc": address_of(host, self.grpc_port), "http": http, **plain}

    def _announce(self, *, is_wide: bool) -> None:
        host = self._settings.host
        logger.info("listening", **self._named(host))
        if self._tls is None and "plain_port" in self._settings.model_fields_set:
            logger.warning("setting_without_effect", setting="plain_port", reason="tls_certificate is not set")
        if not is_wide:
            return
        if self._is_open_to_all:
            logger.warning("open_to_all", host=host, remedy="set TEACHER_TOKENS or tokens_file, or bind to 127.0.0.1")
        elif self._tls is None:
            logger.warning("tokens_in_the_clear", host=host, remedy="set tls_certificate and tls_key")
