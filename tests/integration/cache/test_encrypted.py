"""A Redis behind TLS: what `rediss://` names is used once its certificate is trusted, and never before."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme

from teacher_service.service import TeacherService
from tests.integration.cache.valkey_process import ValkeyProcess
from tests.integration.counting_backend import CountingBackend
from tests.integration.raw_calls import ask, channel_to, compute

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def encrypted(valkey: ValkeyProcess, authority: trustme.CA) -> AsyncIterator[int]:
    """Stand before a Valkey with TLS; yield the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(valkey.url.removeprefix("unix://"))
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_a_redis_behind_tls(
    serve_teacher: ServeTeacher, own_valkey: ValkeyProcess, tmp_path: Path, is_trusted: bool
) -> None:
    authority = trustme.CA()
    trusted = tmp_path / "ca.pem"
    (authority if is_trusted else trustme.CA()).cert_pem.write_to_path(str(trusted))
    async with encrypted(own_valkey, authority) as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={trusted}"
        backend = CountingBackend()
        async with (
            serve_teacher(url, backend, cache_timeout_seconds=5.0) as service,
            channel_to(service) as channel,
        ):
            answers = [await compute(channel, ask((1, 2, 3))) for _ in range(4)]
            assert [answer.cache_hits for answer in answers] == ([0, 1, 1, 1] if is_trusted else [0] * 4)
            state = service.lifecycle.teacher.cache_state
            assert state == ("on" if is_trusted else "paused: it cannot be reached")
