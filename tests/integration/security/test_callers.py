"""Tokens that change, limits of each, answers that nobody reads, and callers by the thousand."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as SequenceOf
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stillhouse.client import AsyncTeacherClient
from stillhouse.errors import OverloadedError, UnauthenticatedError
from stillhouse.request import LogitsRequest, Sequence
from stillhouse.status import PUSHBACK_TRAILER
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from teacher_service import http_server, token_watch
from teacher_service.backends import HiddenRows
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.grpc_gate import _MAX_WATCHERS
from teacher_service.service import TeacherService
from tests.integration.security.conftest import ServeTeacher

FIRST, SECOND, THIRD = "first-token-0123456789", "second-token-0123456789", "third-token-0123456789"


class GatedBackend(FixtureBackend):
    """Waits at a gate before each batch."""

    def __init__(self) -> None:
        super().__init__(64)
        self.gate = threading.Event()

    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        assert self.gate.wait(20)
        return super().forward(sequences)


def client_of(service: TeacherService, token: str | None = None) -> AsyncTeacherClient:
    return AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}", token=token, max_attempts=1)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(0.01)


def value(service: TeacherService, name: str, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


async def is_let_in(service: TeacherService, token: str) -> bool:
    async with client_of(service, token) as client:
        try:
            await client.describe()
        except UnauthenticatedError:
            return False
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http:
        answer = await http.get("/v1/teacher", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 200
    return True


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at files more often than a service does, so that a test need not wait."""
    monkeypatch.setattr(token_watch, "CHECK_SECONDS", 0.05)


@pytest.mark.usefixtures("quick_looks")
async def test_tokens_change_with_their_file_however_it_is_replaced(
    serve_teacher: ServeTeacher, tmp_path: Path
) -> None:
    # As Kubernetes mounts a secret: the name is a link into a folder that is itself a link.
    for version, token in (("1", FIRST), ("2", SECOND)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tokens").write_text(f"trainer {token}\n")
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "tokens").symlink_to("data/tokens")
    async with serve_teacher(tokens_file=tmp_path / "tokens") as service:

        def reloads() -> float:
            return value(service, "teacher_token_reloads_total", result="used")

        assert await is_let_in(service, FIRST)
        (tmp_path / "data.new").symlink_to("2")
        (tmp_path / "data.new").replace(tmp_path / "data")
        await until(lambda: reloads() == 1)
        assert await is_let_in(service, SECOND)
        assert not await is_let_in(service, FIRST)
        (tmp_path / "2" / "tokens").write_text(f"trainer {SECOND}\ntrainer {THIRD}\n")
        await until(lambda: reloads() == 2)
        assert await is_let_in(service, SECOND)
        assert await is_let_in(service, THIRD)


@pytest.mark.usefixtures("quick_looks")
async def test_a_broken_file_keeps_the_tokens_of_before(
    serve_teacher: ServeTeacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"trainer {FIRST}\n")
    async with serve_teacher(tokens_file=file) as service:
        file.write_text("")
        await until(lambda: value(service, "teacher_token_reloads_total", result="refused") == 1)
        assert await is_let_in(service, FIRST)
        file.write_text(f"trainer {SECOND} everything\n")
        await until(lambda: value(service, "teacher_token_reloads_total", result="refused") == 2)
        assert await is_let_in(service, FIRST)
        file.unlink()
        await until(lambda: value(service, "teacher_token_reloads_total", result="refused") == 3)
        file.write_text(f"trainer {SECOND}\n")
        await until(lambda: value(service, "teacher_token_reloads_total", result="used") == 1)
        assert not await is_let_in(service, FIRST)
    log = capsys.readouterr().out
    assert "tokens_kept" in log
    assert FIRST not in log
    assert SECOND not in log


async def test_one_caller_cannot_take_all_places(serve_teacher: ServeTeacher, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"greedy {FIRST}\nmodest {SECOND}\n")
    backend = GatedBackend()
    async with (
        serve_teacher(None, backend, tokens_file=file, max_requests_per_token=2) as service,
        client_of(service, FIRST) as greedy,
        client_of(service, SECOND) as modest,
    ):
        await greedy.describe()
        asked = [asyncio.create_task(greedy.answer(LogitsRequest((Sequence((n,)),)))) for n in range(2)]
        await until(lambda: value(service, "teacher_caller_requests", caller="greedy") == 2)
        with pytest.raises(OverloadedError, match="greedy has 2 requests in flight") as refusal:
            await greedy.answer(LogitsRequest((Sequence((3,)),)))
        assert 0 < refusal.value.retry_after_seconds < 10
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http:
            headers = {"authorization": f"Bearer {FIRST}"}
            answer = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]}, headers=headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        await modest.describe()
        backend.gate.set()
        await asyncio.gather(*asked)
        await until(lambda: value(service, "teacher_caller_requests", caller="greedy") == 0)
        await greedy.answer(LogitsRequest((Sequence((3,)),)))


@asynccontextmanager
async def raw(service: TeacherService, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    address = f"127.0.0.1:{service.grpc_port}"
    async with grpc.aio.insecure_channel(address, options=list(options.items())) as channel:
        yield channel


async def test_an_answer_that_nobody_reads_is_given_up(serve_teacher: ServeTeacher) -> None:
    message = pb.LogitsRequest(
        sequences=[pb.Sequence(token_ids=range(1, 1001), all=pb.AllPositions())], dense=pb.DenseEncoding()
    )
    async with (
        serve_teacher(fixture_vocabulary_size=8000, send_stall_seconds=0.5) as service,
        raw(service) as channel,
    ):
        call = pb_grpc.TeacherServiceStub(channel).StreamLogits(pb.StreamLogitsRequest(request=message))
        first = await call.read()
        assert isinstance(first, pb.StreamLogitsResponse)
        assert first.header.payload_bytes[0] > 30 * 2**20
        await until(lambda: value(service, "teacher_shed_total", reason="not_read") == 1)
        await until(lambda: service._admission.num_in_flight == 0 and value(service, "teacher_held_bytes") == 0)
        # Others are served meanwhile and afterwards.
        async with client_of(service) as client:
            assert len((await client.answer(LogitsRequest((Sequence((1,)),)))).payloads) == 1


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
