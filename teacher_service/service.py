"""One teacher service: both doors on one event loop, weights that load meanwhile, and an orderly end.

Start: bind every port, answer /livez, load, open. End: refuse what is new, finish what is in flight, close. Knows
nothing of how an answer is made, nor of processes and their signals (`process`).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import structlog

from stillhouse.errors import ConfigurationError, StillhouseError
from stillhouse.logs import without_folders
from teacher_service.admission import Admission
from teacher_service.auth import Access
from teacher_service.backends import TeacherBackend, open_backend
from teacher_service.cache import AnswerCache
from teacher_service.doors import LAST_WORDS_SECONDS, Doors
from teacher_service.head_bytes import HeadBytes
from teacher_service.lifecycle import Lifecycle
from teacher_service.metrics import Metrics
from teacher_service.page.history import History
from teacher_service.settings import TeacherSettings
from teacher_service.teacher import Teacher
from teacher_service.tls import Tls
from teacher_service.token_sources import is_readable_by_all, tokens_of
from teacher_service.token_watch import watch_tokens

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
        """Read tokens and certificates; nothing listens yet.

        Raises:
            ConfigurationError: one of them cannot be used.
        """
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
        self._tls = None if settings.tls_certificate is None else Tls(settings, self.metrics)
        self._cache = None if redis_url is None else self._open_cache(redis_url)
        self._history = History(self.metrics)
        self._doors = Doors(
            settings, self.lifecycle, self.metrics, self._admission, self._tls, self._history, redis_url
        )
        self._watching: set[asyncio.Task[None]] = set()
        self._teacher: Teacher | None = None
        self._stopping = asyncio.Event()
        self._is_open = self._is_closed = False

    @property
    def grpc_port(self) -> int:
        """The port that the gRPC door is bound to."""
        return self._doors.grpc_port

    @property
    def http_port(self) -> int:
        """The port that the HTTP door is bound to."""
        return self._doors.http_port

    @property
    def plain_port(self) -> int:
        """The port for probes beside TLS; 0 without TLS."""
        return self._doors.plain_port

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` has been called."""
        return self._stopping.is_set()

    async def open(self) -> None:
        """Bind every port and answer health checks.

        Raises:
            ConfigurationError: a port is taken, or the address is none of this machine's.
        """
        await self._doors.open()
        self._is_open = True
        self._watching.add(asyncio.create_task(self._history.keep(), name="history"))
        # One of a process that was killed: nobody must take it for ours.
        self._remove_ready_file()
        if not any(token.scope == "teacher" for token in self._access.tokens) and not self._access.is_open:
            logger.warning("nobody_may_ask", reason="no token has the scope teacher", remedy="set TEACHER_TOKENS too")
        tokens_file = self._settings.tokens_file
        if tokens_file is not None:
            if is_readable_by_all(tokens_file):
                logger.warning("tokens_file_readable_by_all", remedy="chmod 600, or defaultMode 0400 of the secret")
            watch = watch_tokens(partial(tokens_of, self._settings), self._access, self.metrics)
            self._watching.add(asyncio.create_task(watch, name="tokens"))
        if self._tls is not None:
            self._watching.add(asyncio.create_task(self._tls.watch(), name="certificates"))

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
            backend_name, model = self._settings.backend, self._settings.model
            what = f"backend {backend_name!r}" if model is None else f"model {model!r}"
            # The operator named the model; other folders of this machine are told to nobody.
            told = without_folders(f"{type(error).__name__}: {error}")
            raise ConfigurationError(f"{what} cannot be served: {told}") from error
        if self._cache is not None:
            await self._cache.ping()
        self._teacher = Teacher(backend, self._cache, self._executor, self.metrics, self._settings)
        heads = HeadBytes(self._teacher.output_head, self._teacher.description.compute_dtype)
        await self._doors.begin(self._teacher, heads)
        self.lifecycle.begin(self._teacher, heads)
        await self._doors.set_serving()
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
        failing = asyncio.create_task(self._doors.failed())
        ending = {stopping, failing}
        try:
            await asyncio.wait({*ending, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                assert self._teacher is not None  # noqa: S101 - loading has succeeded
                await asyncio.wait({*ending, self._teacher.running}, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result()
            if not self._stopping.is_set():
                raise StillhouseError("the loop that computes batches has ended; see the log")
        finally:
            for task in (*ending, loading):
                task.cancel()
            await asyncio.wait({*ending, loading})

    async def close(self) -> None:
        """Refuse what is new, let what is in flight finish within the grace, and end; once, however often called."""
        if self._is_closed:
            return
        self._is_closed = True
        self.stop()
        self.lifecycle.drain()
        self._admission.drain()
        await self._doors.drain()
        if self._is_open:
            # Else it may be that of the service that holds our ports.
            self._remove_ready_file()
        if self._teacher is not None:
            await self._finish_work()
        await self._doors.close()
        if self._teacher is not None:
            await self._teacher.close()
            logger.info("stopped")
        if self._cache is not None:
            await self._cache.close()
        for task in self._watching:
            task.cancel()
        if self._watching:
            await asyncio.wait(self._watching)

    async def _finish_work(self) -> None:
        grace = self._settings.grace_seconds
        logger.info("draining", grace_seconds=grace, in_flight=self._admission.num_in_flight)
        if not await self._wait_until_empty(grace):
            logger.warning("grace_is_over", given_up=self._admission.num_in_flight)
            self._admission.end()
            self._doors.end()
            await self._wait_until_empty(LAST_WORDS_SECONDS)

    async def _wait_until_empty(self, seconds: float) -> bool:
        return all(
            await asyncio.gather(self._admission.wait_until_empty(seconds), self._doors.wait_until_empty(seconds))
        )

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
            lease_seconds=self._settings.cache_lease_seconds,
        )

    def _remove_ready_file(self) -> None:
        if self._settings.ready_file is not None:
            self._settings.ready_file.unlink(missing_ok=True)

    def _write_ready_file(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            aside.write_text(json.dumps({**self._doors.addresses(), "pid": os.getpid()}), encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            raise ConfigurationError(f"ready_file: {path} cannot be written: {error.strerror or error}") from error
