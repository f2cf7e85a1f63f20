"""A teacher service inside the test's own event loop, with whatever backend and cache a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from teacher_service.backends import TeacherBackend, open_backend
from teacher_service.service import TeacherService
from teacher_service.settings import TeacherSettings
from tests.integration.cache.valkey_process import ValkeyProcess

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]


@asynccontextmanager
async def _serve(
    redis_url: str | None = None, given: TeacherBackend | None = None, **settings: Any
) -> AsyncIterator[TeacherService]:
    chosen = {"backend": "fixture", "http_port": 0, "grpc_port": 0, "grace_seconds": 5.0, **settings}
    executor = ThreadPoolExecutor(1)
    service = TeacherService(
        TeacherSettings(**chosen), executor, redis_url, opener=open_backend if given is None else lambda _: given
    )
    try:
        await service.open()
        serving = asyncio.create_task(service.serve())
        async with asyncio.timeout(30):
            while service.lifecycle.phase == "loading" and not serving.done():  # noqa: ASYNC110 - a state, not an event
                await asyncio.sleep(0.005)
        yield service
        service.stop()
        await serving
    finally:
        await service.close()
        executor.shutdown()


@pytest.fixture
def serve_teacher(monkeypatch: pytest.MonkeyPatch) -> ServeTeacher:
    """Serve the fixture backend, or the one given, on free ports: `async with serve_teacher(...) as service`."""
    import os

    for name in list(os.environ):
        if name.upper().startswith("TEACHER_"):
            monkeypatch.delenv(name)
    return _serve


@pytest.fixture
def own_valkey() -> Iterator[ValkeyProcess]:
    """A Valkey that the test may do to what it likes."""
    process = ValkeyProcess()
    yield process
    process.close()
