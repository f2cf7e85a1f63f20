"""Callers that vanish, send garbage or half of a thing, never read, or come by the hundred."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stillhouse.request import LogitsRequest, Sequence
from stillhouse.status import PUSHBACK_TRAILER
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from teacher_service import grpc_gate, http_server
from teacher_service.connections import close_connection
from teacher_service.grpc_gate import _MAX_WATCHERS
from tests.integration.security.conftest import ServeTeacher
from tests.integration.security.speaking import FIRST, GatedBackend, client_of, raw, until, value

LARGE = pb.LogitsRequest(
    sequences=[pb.Sequence(token_ids=range(1, 1001), all=pb.AllPositions())], dense=pb.DenseEncoding()
)
"""Its answer has 32 MB, which fit no window."""


async def test_a_stream_that_nobody_reads_is_given_up_and_its_connection_closed(serve_teacher: ServeTeacher) -> None:
    async with (
        serve_teacher(fixture_vocabulary_size=8000, send_stall_seconds=0.5) as service,
        raw(service) as channel,
    ):
        call = pb_grpc.TeacherServiceStub(channel).StreamLogits(pb.StreamLogitsRequest(request=LARGE))
        await call.read()
        await until(lambda: value(service, "teacher_shed_total", reason="not_read") == 1)
        await until(lambda: service._admission.num_in_flight == 0 and value(service, "teacher_held_bytes") == 0)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        # Others are served meanwhile and afterwards, this caller too.
        async with client_of(service) as client:
            assert len((await client.answer(LogitsRequest((Sequence((1,)),)))).payloads) == 1
        await channel.unary_unary("/stillhouse.teacher.v1.TeacherService/GetTeacher", bytes, bytes)(b"", timeout=20)


async def test_one_message_that_nobody_reads_is_given_up_too(
    serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_gate, "_SLOWEST_BYTES_PER_SECOND", 2**40)
    async with (
        serve_teacher(fixture_vocabulary_size=8000, send_stall_seconds=0.5) as service,
        raw(service) as channel,
    ):
        # Asked as a stream, since a client takes a single answer without being told to.
        method = "/stillhouse.teacher.v1.TeacherService/ComputeLogits"
        message = pb.ComputeLogitsRequest(request=LARGE).SerializeToString()
        call = channel.unary_stream(method, bytes, bytes)(message)
        await call.initial_metadata()
        await until(lambda: value(service, "teacher_shed_total", reason="not_read") == 1)
        await until(lambda: service._admission.num_in_flight == 0)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


def has_ended(connection: socket.socket) -> bool:
    try:
        while connection.recv(1024):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


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


async def test_a_caller_that_vanishes_gives_its_place_back(serve_teacher: ServeTeacher) -> None:
    backend = GatedBackend()
    message = pb.LogitsRequest(sequences=[pb.Sequence(token_ids=[1])], dense=pb.DenseEncoding())
    async with serve_teacher(None, backend) as service:
        async with raw(service) as channel:
            stub = pb_grpc.TeacherServiceStub(channel)
            calls = [
                stub.ComputeLogits(pb.ComputeLogitsRequest(request=message)),
                stub.StreamLogits(pb.StreamLogitsRequest(request=message)),
            ]
            await until(lambda: service._admission.num_in_flight == 2)
            for call in calls:
                call.cancel()
        await until(lambda: service._admission.num_in_flight == 0)
        backend.gate.set()


async def test_watchers_of_health_are_bounded(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=FIRST) as service, raw(service) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(_MAX_WATCHERS)]
        for call in watching:
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Watch(health_pb2.HealthCheckRequest()).read()
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert PUSHBACK_TRAILER in str(refusal.value.trailing_metadata())
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        watching[0].cancel()
        await until(lambda: service._doors._grpc._gate.num_watchers < _MAX_WATCHERS)
        again = stub.Watch(health_pb2.HealthCheckRequest())
        await again.read()


async def test_a_message_is_not_read_before_its_caller_is_known(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=FIRST) as service, raw(service) as channel:
        call = channel.stream_unary("/stillhouse.teacher.v1.TeacherService/ComputeLogits", bytes, bytes)(None)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call  # nothing was sent, and the answer is here
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b""])
async def test_garbage_is_the_callers_fault(serve_teacher: ServeTeacher, message: bytes) -> None:
    async with serve_teacher() as service, raw(service) as channel:
        for method in ("ComputeLogits", "StreamLogits"):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await channel.unary_unary(f"/stillhouse.teacher.v1.TeacherService/{method}", bytes, bytes)(message)
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_metadata_has_a_bound(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, raw(service) as channel:
        call = channel.unary_unary("/stillhouse.teacher.v1.TeacherService/GetTeacher", bytes, bytes)
        await call(b"", metadata=(("x-filler", "x" * 8_000),), timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call(b"", metadata=(("x-filler", "x" * 64_000),), timeout=20)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http:
            # It may be closed before all of it has been sent.
            with contextlib.suppress(httpx.TransportError):
                assert (await http.get("/livez", headers={"x-filler": "x" * 2**21})).status_code == 400


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


async def test_an_http_answer_that_nobody_reads_is_given_up(serve_teacher: ServeTeacher) -> None:
    body = b'{"sequences": [{"token_ids": [%s], "positions": "all"}]}' % b",".join([b"1"] * 700)
    head = b"POST /v1/logits HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    async with serve_teacher(fixture_vocabulary_size=3000, send_stall_seconds=0.3) as service:
        with socket.socket() as caller:
            # Else the kernel holds it all, and nobody has to wait.
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(caller, ("127.0.0.1", service.http_port))
            await loop.sock_sendall(caller, head % len(body) + body)
            assert await loop.sock_recv(caller, 12) == b"HTTP/1.1 200"
            await until(lambda: not service._doors._http._server.server_state.connections)
            await until(lambda: service._admission.num_in_flight == 0)


async def test_a_thousand_idle_connections_lock_nobody_out(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service:
        idle = [
            await asyncio.open_connection("127.0.0.1", port)
            for _ in range(150)
            for port in (service.grpc_port, service.http_port)
        ]
        async with client_of(service) as client:
            await client.describe()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http:
            assert (await http.get("/livez")).status_code == 200
        for _, writer in idle:
            writer.close()


async def test_connections_over_the_bound_are_closed_at_once(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(max_connections=3) as service:
        for port in (service.grpc_port, service.http_port):
            streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
            async with asyncio.timeout(10):
                endings = [asyncio.create_task(_ended(reader)) for reader, _ in streams]
                await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
            for ending in endings:
                ending.cancel()
            await asyncio.wait(endings)
            for _, writer in streams:
                writer.close()


async def _ended(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1024):
            pass
    except ConnectionResetError:
        pass
