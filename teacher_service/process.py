"""The teacher service as a process: its signals, its exit code, and the Valkey that lives and dies with it.

The first SIGTERM or SIGINT asks for an orderly end, the second ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import structlog

from stillhouse.errors import ConfigurationError, StillhouseError
from stillhouse.logs import configure_logging
from stillhouse.tracing import configure_tracing
from teacher_service import event_loop
from teacher_service.backends.opening import follow, is_follower
from teacher_service.embedded_redis import EmbeddedRedis
from teacher_service.freed_memory import keep_freed_memory
from teacher_service.garbage import look_for_garbage_seldom
from teacher_service.service import TeacherService
from teacher_service.settings import TeacherSettings

# How long an idle thread needs at most to take up a task that does nothing.
_IDLE_CHECK_SECONDS = 0.2

# Beside connections: the model's files, Redis, libraries.
_OTHER_OPEN_FILES = 512

logger = structlog.get_logger(__name__)


def run(settings: TeacherSettings) -> int:
    """Serve in this process until SIGTERM or SIGINT; return the exit code.

    Raises:
        StillhouseError: the service could not start, or could not go on.
    """
    # Whoever looks for a fault asks for debug and gets stacks; nobody else need see how this machine is laid out.
    configure_logging(settings.log_level, settings.log_format, stacks=settings.log_level == "debug")
    end_tracing = configure_tracing("stillhouse-teacher")
    try:
        return _run(settings)
    finally:
        end_tracing()


def _run(settings: TeacherSettings) -> int:
    if is_follower(settings):
        follow(settings)
        return 0
    if settings.ready_file is not None and not settings.ready_file.parent.is_dir():
        raise ConfigurationError(f"ready_file: the folder {settings.ready_file.parent} does not exist; make it first")
    if settings.ready_file is not None and settings.ready_file.is_dir():
        raise ConfigurationError(f"ready_file: {settings.ready_file} is a folder; name a file, which is written there")
    keep_freed_memory()
    look_for_garbage_seldom()
    _allow_open_files(2 * settings.max_connections + _OTHER_OPEN_FILES)
    executor = ThreadPoolExecutor(1, thread_name_prefix="model")
    try:
        with _redis_url(settings) as redis_url:
            event_loop.run(_serve(settings, executor, redis_url))
    except StillhouseError as error:
        if _is_idle(executor):
            raise
        _leave(2, str(error))
    if not _is_idle(executor):
        _leave(0, "the model's thread was still at work when the service ended")
    return 0


async def _serve(settings: TeacherSettings, executor: Executor, redis_url: str | None) -> None:
    service = TeacherService(settings, executor, redis_url)

    def stop(number: int) -> None:
        if service.is_stopping:
            _leave(128 + number, "a second signal came")
        service.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
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
        for setting in sorted({"cache_memory_bytes", "cache_policy"} & settings.model_fields_set):
            logger.warning("setting_without_effect", setting=setting, reason="redis_url is set")
        yield settings.redis_url.get_secret_value()
    else:
        with EmbeddedRedis(settings.cache_memory_bytes, settings.cache_policy) as embedded:
            yield embedded.url


def _allow_open_files(needed: int) -> None:
    """Raise the limit on open files as far as this process may: at the usual 1,024 idle callers lock out all others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


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
