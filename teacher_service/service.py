"""One teacher service: both doors on one event loop, weights that load meanwhile, and an orderly end.

Start: bind both ports, answer /livez, load, open. End: refuse what is new, finish what is in flight, stop the
embedded Valkey. Knows nothing of how an answer is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import structlog
import uvicorn

from stillhouse.errors import ConfigurationError, StillhouseError
from stillhouse.logs import configure_logging
from teacher_service.addresses import address_of, bind, is_loopback
from teacher_service.admission import Admission
from teacher_service.app import build_app
from teacher_service.auth import Access
from teacher_service.backends import TeacherBackend, open_backend
from teacher_service.cache import AnswerCache
from teacher_service.embedded_redis import EmbeddedRedis
from teacher_service.grpc_door import GrpcDoor
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics
from teacher_service.settings import TeacherSettings
from teacher_service.teacher import Teacher
from teacher_service.token_sources import tokens_of
from teacher_service.token_watch import watch_tokens

_LISTEN_BACKLOG = 2048

# How long an idle thread needs at most to take up a task that does nothing.
_IDLE_CHECK_SECONDS = 0.2

logger = structlog.get_logger(__name__)


class TeacherService:
    """A service with its doors; for one event loop. `executor` is the one thread that the model runs in."""

    def __init__(
        self,
        settings: TeacherSettings,
        executor: Executor,
        redis_url: str | None,
        opener: Callable[[TeacherSettings], TeacherBackend] = open_backend,
    ) -> None:
        self.metrics = Metrics()
        self.lifecycle = Lifecycle(self.metrics)
        self._settings = settings
        self._executor = executor
        self._opener = opener
        self._access = Access(tokens_of(settings))
        self._admission = Admission(
            self._access,
            self.metrics,
            max_requests_per_token=settings.max_requests_per_token,
            max_seconds=settings.max_call_seconds,
        )
        self._cache = None if redis_url is None else self._open_cache(redis_url)
        self._grpc = GrpcDoor(self.lifecycle, self.metrics, self._admission, settings)
        app = build_app(self.lifecycle, self.metrics, self._admission, max_body_bytes=settings.max_message_bytes)
        self._http = _HttpServer(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
            )
        )
        self._http_task: asyncio.Task[None] | None = None
        self._watch_task: asyncio.Task[None] | None = None
        self._teacher: Teacher | None = None
        self._stopping = asyncio.Event()
        self._is_closed = False
        self.grpc_port = 0
        self.http_port = 0

    async def open(self) -> None:
        """Bind both ports and answer health checks.

        Raises:
            ConfigurationError: a port is taken, or the address is none of this machine's.
        """
        host = self._settings.host
        with contextlib.ExitStack() as stack:
            http_socket = bind(host, self._settings.http_port, "http_port")
            stack.callback(http_socket.close)
            self.http_port = http_socket.getsockname()[1]
            # gRPC says on stderr, at length, what this says in one line.
            bind(host, self._settings.grpc_port, "grpc_port").close()
            self.grpc_port = await self._grpc.open(address_of(host, self._settings.grpc_port))
            http_socket.listen(_LISTEN_BACKLOG)
            stack.pop_all()
        self._http_task = asyncio.create_task(self._http.serve(sockets=[http_socket]), name="http")
        if self._settings.tokens_file is not None:
            read = partial(tokens_of, self._settings)
            self._watch_task = asyncio.create_task(watch_tokens(read, self._access, self.metrics), name="tokens")
        logger.info(
            "listening", grpc=address_of(host, self.grpc_port), http=f"http://{address_of(host, self.http_port)}"
        )
        if self._access.is_open and not is_loopback(host):
            logger.warning("open_to_all", host=host, remedy="set TEACHER_TOKENS, or bind to 127.0.0.1")

    async def load(self) -> None:
        """Load the model in its thread, then open for requests.

        Raises:
            ConfigurationError: it cannot be run here.
        """
        loop = asyncio.get_running_loop()
        logger.info("loading", backend=self._settings.backend, model=self._settings.model)
        try:
            backend = await loop.run_in_executor(self._executor, self._load_backend)
        except ConfigurationError:
            raise
        except Exception as error:  # what third-party model code raises knows no bounds
            logger.exception("loading_failed")
            raise ConfigurationError(
                f"model {self._settings.model!r} cannot be served: {type(error).__name__}: {error}"
            ) from error
        if self._cache is not None:
            await self._cache.ping()
        self._teacher = Teacher(backend, self._cache, self._executor, self.metrics, self._settings)
        self.lifecycle.ready(self._teacher)
        await self._grpc.set_serving(serving=True)
        if self._settings.ready_file is not None:
            self._write_ready_file(self._settings.ready_file)
        description = self._teacher.description
        logger.info("ready", model=description.model, fingerprint=description.fingerprint, mode=description.mode)

    def stop(self) -> None:
        """Ask `serve` to end."""
        self._stopping.set()

    async def serve(self) -> None:
        """Load and serve until `stop` is called.

        Raises:
            StillhouseError: the model could not be loaded, or the service cannot go on.
        """
        stopping = asyncio.create_task(self._stopping.wait())
        loading = asyncio.create_task(self.load())
        try:
            await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                assert self._teacher is not None  # noqa: S101 - loading has succeeded
                await asyncio.wait({stopping, self._teacher.running}, return_when=asyncio.FIRST_COMPLETED)
                if not self._stopping.is_set():
                    raise StillhouseError("the loop that computes batches has ended; see the log")
        finally:
            stopping.cancel()
            loading.cancel()
            await asyncio.wait({stopping, loading})

    async def close(self) -> None:
        """Refuse what is new, let what is in flight finish within the grace, and end; once, however often called."""
        if self._is_closed:
            return
        self._is_closed = True
        self.stop()
        self.lifecycle.drain()
        await self._grpc.set_serving(serving=False)
        if self._settings.ready_file is not None:
            self._settings.ready_file.unlink(missing_ok=True)
        if self._teacher is not None:
            logger.info("draining", grace_seconds=self._settings.grace_seconds)
        # The HTTP door last: until all else has ended, /livez and /readyz say how it stands.
        await self._grpc.close(self._settings.grace_seconds)
        if self._http_task is not None:
            self._http.should_exit = True
            await self._http_task
        if self._teacher is not None:
            await self._teacher.close()
            logger.info("stopped")
        if self._cache is not None:
            await self._cache.close()
        if self._watch_task is not None:
            self._watch_task.cancel()
            await asyncio.wait({self._watch_task})

    def _load_backend(self) -> TeacherBackend:
        with self.lifecycle.progress.heard():
            return self._opener(self._settings)

    def _open_cache(self, redis_url: str) -> AnswerCache:
        return AnswerCache(
            redis_url,
            self.metrics,
            timeout_seconds=self._settings.cache_wait_seconds,
            max_value_bytes=self._settings.cache_max_value_bytes,
            ttl_seconds=self._settings.cache_ttl_seconds,
        )

    def _write_ready_file(self, path: Path) -> None:
        host = self._settings.host if self._settings.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104 - compared, not bound to
        content = {
            "grpc": address_of(host, self.grpc_port),
            "http": f"http://{address_of(host, self.http_port)}",
            "pid": os.getpid(),
        }
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        aside.write_text(json.dumps(content), encoding="utf-8")
        aside.replace(path)


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the service has its own, for both doors."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def run(settings: TeacherSettings) -> int:
    """Serve in this process until SIGTERM or SIGINT; return the exit code.

    Raises:
        StillhouseError: the service could not start, or could not go on.
    """
    configure_logging(settings.log_level, settings.log_format)
    if settings.ready_file is not None and not settings.ready_file.parent.is_dir():
        raise ConfigurationError(f"ready_file: the folder {settings.ready_file.parent} does not exist; make it first")
    if settings.ready_file is not None and settings.ready_file.is_dir():
        raise ConfigurationError(f"ready_file: {settings.ready_file} is a folder; name a file, which is written there")
    executor = ThreadPoolExecutor(1, thread_name_prefix="model")
    try:
        with _redis_url(settings) as redis_url:
            asyncio.run(_serve(settings, executor, redis_url))
    except StillhouseError as error:
        if _is_idle(executor):
            raise
        _leave(2, str(error))
    if not _is_idle(executor):
        _leave(0, "the model's thread was still at work when the service ended")
    return 0


async def _serve(settings: TeacherSettings, executor: Executor, redis_url: str | None) -> None:
    service = TeacherService(settings, executor, redis_url)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, service.stop)
    try:
        await service.open()
        await service.serve()
    finally:
        await service.close()


@contextmanager
def _redis_url(settings: TeacherSettings) -> Iterator[str | None]:
    """Give the Redis to use, starting the embedded one where none is named; None without a cache."""
    if settings.cache == "off":
        yield None
    elif settings.redis_url is not None:
        if "cache_memory_bytes" in settings.model_fields_set:
            logger.warning("setting_without_effect", setting="cache_memory_bytes", reason="redis_url is set")
        yield settings.redis_url.get_secret_value()
    else:
        with EmbeddedRedis(settings.cache_memory_bytes) as embedded:
            yield embedded.url


def _is_idle(executor: ThreadPoolExecutor) -> bool:
    check = executor.submit(lambda: None)
    try:
        check.result(_IDLE_CHECK_SECONDS)
    except TimeoutError:
        return False
    return True


def _leave(code: int, reason: str) -> None:
    """End the process at once: Python would wait for a thread that loads or computes, maybe for minutes."""
    logger.warning("left_early", reason=reason)
    os._exit(code)
