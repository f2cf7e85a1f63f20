"""Every RPC and route, listed from what is registered: refused to whoever may not, but for the few that are open.

A new RPC or route is tried here without a line being added; one that should be open has to be named below.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service.service import TeacherService
from tests.integration.security.conftest import Authorities, Pem, ServeTeacher

TOKEN, SCRAPE_TOKEN, WRONG_TOKEN = "right-token-0123456789", "scrape-token-0123456789", "wrong-token-0123456789"

OPEN_RPCS = {f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")}
OPEN_ROUTES = {
    ("GET", "/livez"),
    ("GET", "/readyz"),
    # The live page's form, and what makes it readable.
    ("POST", "/page/enter"),
    ("POST", "/page/leave"),
    ("GET", "/page/static/page.css"),
    ("GET", "/page/static/page.js"),
    ("GET", "/page/static/icon.svg"),
}
SCRAPE_ROUTES = {("GET", "/metrics"), ("GET", "/"), ("GET", "/page/live")}


def rpcs_of_descriptors() -> set[str]:
    pool = descriptor_pool.Default()
    services = (
        pb.DESCRIPTOR.services_by_name["TeacherService"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
        pool.FindServiceByName(reflection.SERVICE_NAME),
    )
    return {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}


def paths_of(service: TeacherService) -> set[str]:
    """Every path that the FastAPI application answers, in its description or not."""
    return set(_paths(service._doors.http_door.app.routes)) | set(service._doors.http_door.app.openapi()["paths"])


def _paths(routes: Sequence[object]) -> Iterator[str]:
    for route in routes:
        inner = getattr(route, "original_router", None)  # what FastAPI makes of `include_router`
        if inner is not None:
            yield from _paths(inner.routes)
        else:
            # A kind of route that has no path is one that this test does not know: it must learn it.
            yield route.path  # type: ignore[attr-defined]  # every other kind has one


def routes_of(service: TeacherService) -> set[tuple[str, str]]:
    """Those paths and some that do not exist, with every method that they could be asked with."""
    paths = paths_of(service) | {"/nothing", "/", "/docs", "/redoc"}
    return {(method, path) for path in paths for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD")}


def headers(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


async def code_of(channel: grpc.aio.Channel, method: str, token: str | None) -> grpc.StatusCode:
    # Asked as a unary call, whatever it is: a refusal looks the same.
    try:
        await channel.unary_unary(method, bytes, bytes)(b"", metadata=headers(token), timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@asynccontextmanager
async def both(service: TeacherService) -> AsyncIterator[tuple[grpc.aio.Channel, httpx.AsyncClient]]:
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http,
    ):
        yield channel, http


async def test_no_rpc_is_registered_that_is_not_tried_here(
    serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: set[str] = set()
    register = grpc.aio.Server.add_generic_rpc_handlers

    def listen(server: grpc.aio.Server, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        registered.update(name for handler in handlers for name in handler._method_handlers)  # type: ignore[attr-defined]  # told nowhere else
        register(server, handlers)

    monkeypatch.setattr("grpc.aio._server.Server.add_generic_rpc_handlers", listen)
    async with serve_teacher(reflection=True):
        assert registered == rpcs_of_descriptors()


@pytest.mark.parametrize(
    ("token", "code", "status"),
    [
        (None, grpc.StatusCode.UNAUTHENTICATED, 401),
        (WRONG_TOKEN, grpc.StatusCode.UNAUTHENTICATED, 401),
        (SCRAPE_TOKEN, grpc.StatusCode.PERMISSION_DENIED, 403),
    ],
)
async def test_whoever_lacks_the_token_is_refused_everywhere(
    serve_teacher: ServeTeacher, token: str | None, code: grpc.StatusCode, status: int
) -> None:
    settings = {"tokens": TOKEN, "scrape_token": SCRAPE_TOKEN, "reflection": True}
    async with serve_teacher(**settings) as service, both(service) as (channel, http):
        rpcs = rpcs_of_descriptors()
        assert len(rpcs - OPEN_RPCS) >= 5
        for method in rpcs - OPEN_RPCS | {"/stillhouse.teacher.v1.TeacherService/Nothing", "/nothing.at.All/Nothing"}:
            assert await code_of(channel, method, token) is code, method
        routes = routes_of(service)
        assert {("POST", "/v1/logits"), ("GET", "/v1/teacher"), ("GET", "/openapi.json")} <= routes
        for method, path in sorted(routes):
            asked = ("GET" if method == "HEAD" else method, path)
            if asked in OPEN_ROUTES or path in ("/livez", "/readyz"):
                continue
            if token == SCRAPE_TOKEN and (asked in SCRAPE_ROUTES or path == "/metrics"):
                continue
            answer = await http.request(method, path, headers=dict(headers(token)))
            assert answer.status_code == status, (method, path)


async def test_what_is_open_needs_no_token_and_says_no_more_than_the_status(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=TOKEN) as service, both(service) as (channel, http):
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="stillhouse.teacher.v1.TeacherService")
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        watching = stub.Watch(request)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()
        listed = (await stub.List(health_pb2.HealthListRequest())).statuses
        assert set(listed) == {"", "stillhouse.teacher.v1.TeacherService"}
        assert {one.status for one in listed.values()} == {health_pb2.HealthCheckResponse.SERVING}
        assert (await http.get("/livez")).json() == {"status": "alive"}
        assert (await http.get("/readyz")).json() == {"status": "ready"}


async def test_the_scrape_token_opens_the_metrics(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=TOKEN, scrape_token=SCRAPE_TOKEN) as service, both(service) as (_, http):
        answer = await http.get("/metrics", headers=dict(headers(SCRAPE_TOKEN)))
        assert answer.status_code == 200
        assert "teacher_ready 1.0" in answer.text


async def test_reflection_is_there_only_where_it_is_asked_for(serve_teacher: ServeTeacher) -> None:
    method = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
    async with serve_teacher() as service, both(service) as (channel, _):
        assert await code_of(channel, method, None) is grpc.StatusCode.UNIMPLEMENTED
    async with serve_teacher(reflection=True) as service, both(service) as (channel, _):
        assert await code_of(channel, method, None) is not grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("who", ["nobody", "foreign", "expired", "plain"])
async def test_whoever_lacks_a_certificate_reaches_nothing(
    serve_teacher: ServeTeacher,
    mutual_tls_settings: dict[str, object],
    authorities: Authorities,
    foreign_pem: Pem,
    expired_pem: Pem,
    tmp_path: Path,
    who: str,
) -> None:
    shown = {"foreign": foreign_pem, "expired": expired_pem}.get(who)
    async with serve_teacher(tokens=TOKEN, reflection=True, **mutual_tls_settings) as service:
        address = f"127.0.0.1:{service.grpc_port}"
        if who == "plain":
            channel = grpc.aio.insecure_channel(address)
            base, verify = f"http://127.0.0.1:{service.http_port}", ssl.create_default_context()
        else:
            channel = grpc.aio.secure_channel(address, authorities.channel_credentials(shown))
            base, verify = f"https://127.0.0.1:{service.http_port}", authorities.ssl_context(shown, tmp_path)
        async with channel:
            for method in rpcs_of_descriptors():
                assert await code_of(channel, method, TOKEN) is grpc.StatusCode.UNAVAILABLE, method
        async with httpx.AsyncClient(base_url=base, verify=verify) as http:
            for method, path in routes_of(service):
                with pytest.raises(httpx.TransportError):
                    await http.request(method, path, headers=dict(headers(TOKEN)))


async def test_the_right_certificate_still_needs_the_token(
    serve_teacher: ServeTeacher,
    mutual_tls_settings: dict[str, object],
    authorities: Authorities,
    client_pem: Pem,
    tmp_path: Path,
) -> None:
    async with serve_teacher(tokens=TOKEN, **mutual_tls_settings) as service:
        credentials = authorities.channel_credentials(client_pem)
        async with grpc.aio.secure_channel(f"127.0.0.1:{service.grpc_port}", credentials) as channel:
            method = "/stillhouse.teacher.v1.TeacherService/GetTeacher"
            assert await code_of(channel, method, None) is grpc.StatusCode.UNAUTHENTICATED
            assert await code_of(channel, method, TOKEN) is grpc.StatusCode.OK
        context = authorities.ssl_context(client_pem, tmp_path)
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{service.http_port}", verify=context) as http:
            assert (await http.get("/v1/teacher")).status_code == 401
            assert (await http.get("/v1/teacher", headers=dict(headers(TOKEN)))).status_code == 200
