"""Connections: how many there may be, how long an idle or half-spoken one stays, and how one of them is closed."""

from __future__ import annotations

import asyncio
import resource
import socket

import httpx
import pytest

from teacher_service import http_server
from teacher_service.connections import close_connection
from tests.integration.security.conftest import ServeTeacher
from tests.integration.security.speaking import client_of
from tests.waiting import until

IDLE = 1000


def has_ended(connection: socket.socket) -> bool:
    try:
        while connection.recv(1024):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


async def _ended(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1024):
            pass
    except ConnectionResetError:
        pass


async def test_only_the_named_connection_is_closed(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service:
        one, other = (socket.create_connection(("127.0.0.1", service.grpc_port)) for _ in range(2))
        name = f"ipv4:127.0.0.1:{one.getsockname()[1]}"
        assert not close_connection(name, service.http_port)
        assert not close_connection("unix:", service.grpc_port)
        await until(lambda: close_connection(name, service.grpc_port))
        for sock in (one, other):
            sock.settimeout(0.5)
        assert await asyncio.to_thread(has_ended, one)
        assert not await asyncio.to_thread(has_ended, other)
        one.close()
        other.close()


async def test_half_a_request_is_given_up(serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_HEAD_SECONDS", 0.3)
    whole = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    async with serve_teacher() as service:
        for before, sent in ((b"", b""), (b"", whole[:-2]), (whole, b"GET /li")):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port)
            if before:
                writer.write(before)
                await reader.readuntil(b"alive")
            writer.write(sent)
            async with asyncio.timeout(10):
                await _ended(reader)
            writer.close()


async def test_a_thousand_idle_connections_lock_nobody_out(serve_teacher: ServeTeacher) -> None:
    # Both ends of each are in this process.
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * IDLE + 200:
        pytest.skip("the limit on open files leaves no room for them")
    async with serve_teacher() as service:
        idle = [
            await asyncio.open_connection("127.0.0.1", port)
            for _ in range(IDLE // 2)
            for port in (service.grpc_port, service.http_port)
        ]
        assert len(idle) == IDLE
        async with client_of(service) as client:
            await client.describe()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http:
            assert (await http.get("/livez")).status_code == 200
        # Nobody was sent away to make room.
        assert not any(reader.at_eof() for reader, _ in idle)
        for _, writer in idle:
            writer.close()


@pytest.mark.parametrize("door", ["grpc", "http"])
async def test_connections_over_the_bound_are_closed_at_once(serve_teacher: ServeTeacher, door: str) -> None:
    async with serve_teacher(max_connections=3) as service:
        port = service.grpc_port if door == "grpc" else service.http_port
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        endings = [asyncio.create_task(_ended(reader)) for reader, _ in streams]
        started = asyncio.get_running_loop().time()
        await until(lambda: sum(ending.done() for ending in endings) == 2)
        # Long before a handshake or a request's head that does not come would end the others.
        assert asyncio.get_running_loop().time() - started < http_server._HEAD_SECONDS / 2
        # Those within the bound are served.
        kept = [stream for stream, ending in zip(streams, endings, strict=True) if not ending.done()]
        for ending in endings:
            ending.cancel()
        await asyncio.wait(endings)
        reader, writer = kept[0]
        hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
        writer.write(hello if door == "grpc" else b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(10):
            assert await reader.read(8)
        for _, writer in streams:
            writer.close()
