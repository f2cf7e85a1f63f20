"""The plain port beside TLS: health over HTTP and gRPC, metrics for a scraper, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from teacher_service import plain_port
from teacher_service.service import TeacherService
from tests.integration.security.conftest import ServeTeacher
from tests.integration.security.test_every_way_in import paths_of

TOKEN, SCRAPE_TOKEN = "right-token-0123456789", "scrape-token-0123456789"
NAME = "stillhouse.teacher.v1.TeacherService"


def http_to(service: TeacherService, token: str | None = None) -> httpx.AsyncClient:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.plain_port}", headers=headers)


def channel_to(service: TeacherService) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{service.plain_port}")


async def test_probes_of_both_protocols_are_answered_on_one_port(
    serve_teacher: ServeTeacher, mutual_tls_settings: dict[str, Any]
) -> None:
    async with (
        serve_teacher(tokens=TOKEN, **mutual_tls_settings) as service,
        http_to(service) as http,
        channel_to(service) as channel,
    ):
        assert (await http.get("/livez")).json() == {"status": "alive"}
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        assert (await http.head("/readyz")).status_code == 200
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", NAME):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watching = stub.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
        service.lifecycle.phase = "loading"
        response = await http.get("/readyz")
        assert (response.status_code, response.json()) == (503, {"status": "loading"})
        service.lifecycle.phase = "ready"


@pytest.mark.parametrize("tokens", [{"tokens": TOKEN, "scrape_token": SCRAPE_TOKEN}, {}])
async def test_metrics_need_a_token_on_this_port_even_where_none_is_set(
    serve_teacher: ServeTeacher, tls_settings: dict[str, Any], tokens: dict[str, str]
) -> None:
    async with serve_teacher(**tokens, **tls_settings) as service:
        for wrong in (None, "wrong-token-0123456789"):
            async with http_to(service, wrong) as http:
                refusal = await http.get("/metrics")
                assert refusal.status_code == 401
                assert refusal.headers["www-authenticate"] == "Bearer"
                assert "teacher_ready" not in refusal.text
        for right in tokens.values():
            async with http_to(service, right) as http:
                assert "teacher_ready 1.0" in (await http.get("/metrics")).text
                # A token brings no detail on this port.
                assert (await http.get("/readyz")).json() == {"status": "ready"}


async def test_nothing_else_is_reached_through_it(serve_teacher: ServeTeacher, tls_settings: dict[str, Any]) -> None:
    async with serve_teacher(tokens=TOKEN, reflection=True, **tls_settings) as service:
        async with http_to(service, TOKEN) as http:
            paths = paths_of(service) | {"/", "/v1", "/livez/", "/readyz/x"}
            assert "/v1/logits" in paths
            for path in paths - {"/livez", "/readyz", "/metrics"}:
                assert (await http.get(path)).status_code == 404, path
                assert (await http.post(path, json={})).status_code == 404, path
            assert (await http.post("/livez")).status_code == 405
        async with channel_to(service) as channel:
            metadata = (("authorization", f"Bearer {TOKEN}"),)
            for method in (f"/{NAME}/GetTeacher", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"):
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await channel.unary_unary(method, bytes, bytes)(b"", metadata=metadata, timeout=20)
                assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_without_tls_there_is_no_such_port(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service:
        assert service.plain_port == 0
        assert "plain" not in service._doors.addresses()


async def test_callers_that_say_nothing_are_sent_away_and_lock_nobody_out(
    serve_teacher: ServeTeacher, tls_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_port, "_FIRST_BYTES_SECONDS", 0.5)
    monkeypatch.setattr(plain_port, "_MAX_CONNECTIONS", 8)
    async with serve_teacher(**tls_settings) as service:
        silent = [await asyncio.open_connection("127.0.0.1", service.plain_port) for _ in range(20)]
        silent[0][1].write(b"PRI * HT")
        async with asyncio.timeout(10):
            for reader, _ in silent:
                # Sent away at once, being too many, or after the bound.
                assert await _all_of(reader) == b""
        async with http_to(service) as http:
            assert (await http.get("/livez")).status_code == 200
        for _, writer in silent:
            writer.close()


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("garbage", [b"\x00" * 64, b"PRI * HTTP/2.0\r\n\r\nnonsense" * 10, b"P", b"GET"])
async def test_garbage_ends_its_own_connection_alone(
    serve_teacher: ServeTeacher, tls_settings: dict[str, Any], garbage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_port, "_SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(plain_port, "_FIRST_BYTES_SECONDS", 0.5)
    async with serve_teacher(**tls_settings) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.plain_port)
        writer.write(garbage)
        async with asyncio.timeout(10):
            await _all_of(reader)
        writer.close()
        async with http_to(service) as http:
            assert (await http.get("/livez")).status_code == 200
