"""Callers that vanish, send garbage or half of a thing, never read, or come by the hundred."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import weakref

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stillhouse.request import LogitsRequest, Sequence
from stillhouse.status import PUSHBACK_TRAILER, Status, status_of
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from teacher_service import grpc_gate, hearing, request_reading
from teacher_service.grpc_gate import _MAX_WATCHERS
from tests.integration.raw_calls import value
from tests.integration.security.conftest import ServeTeacher
from tests.integration.security.speaking import FIRST, GatedBackend, client_of, raw
from tests.waiting import until

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


async def test_an_unknown_name_is_no_fault_of_the_service(
    serve_teacher: ServeTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve_teacher() as service, raw(service) as channel:
        for method, message, code in (
            ("/stillhouse.teacher.v1.TeacherService/Nothing", b"", "UNIMPLEMENTED"),
            ("/grpc.health.v1.Health/Check", b"\x0a\x04none", "NOT_FOUND"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await channel.unary_unary(method, bytes, bytes)(message)
            assert refusal.value.code().name == code
        # Health ends its call itself, which a caller may see before it is counted.
        counted = (("other", "UNIMPLEMENTED"), ("Check", "NOT_FOUND"))
        await until(
            lambda: all(
                value(service, "teacher_requests_total", method=method, code=code) == 1 for method, code in counted
            )
        )
    assert "error" not in capsys.readouterr().out


async def test_questions_about_health_that_do_not_come_make_room_for_those_that_do(
    serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "_QUESTION_SECONDS", 60.0)
    async with serve_teacher(tokens=FIRST) as service, raw(service) as channel:
        ask = channel.stream_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        silent = [ask(None) for _ in range(3 * hearing._MAX_UNREAD_QUESTIONS)]
        over = len(silent) - hearing._MAX_UNREAD_QUESTIONS
        await until(lambda: value(service, "teacher_shed_total", reason="not_heard") == over)
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="over the limit of 4096"):
            await stub.Check(health_pb2.HealthCheckRequest(service="x" * 2**20))
        for call in silent:
            call.cancel()


async def test_a_burst_of_questions_about_health_is_answered(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(tokens=FIRST) as service, raw(service) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answers = await asyncio.gather(*(stub.Check(health_pb2.HealthCheckRequest()) for _ in range(500)))
        assert {answer.status for answer in answers} == {health_pb2.HealthCheckResponse.SERVING}
        assert not value(service, "teacher_shed_total", reason="not_heard")


@pytest.mark.parametrize("field", ["sequences", "token_ids"])
async def test_a_message_far_over_the_limits_does_not_hold_up_others(
    serve_teacher: ServeTeacher, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: pb.LogitsRequest) -> None:
        raise AssertionError("its millions of numbers became objects")

    async with serve_teacher() as service, raw(service) as channel:
        monkeypatch.setattr(request_reading, "request_from_proto", refuse)
        sequences = (
            [pb.Sequence(token_ids=[1])] * 1025 if field == "sequences" else [pb.Sequence(token_ids=bytes(2**20))] * 2
        )
        asked = pb.ComputeLogitsRequest(request=pb.LogitsRequest(sequences=sequences, dense=pb.DenseEncoding()))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await pb_grpc.TeacherServiceStub(channel).ComputeLogits(asked)
        assert refusal.value.code() is grpc.StatusCode.OUT_OF_RANGE


@pytest.mark.parametrize("method", ["ComputeLogits", "StreamLogits"])
async def test_what_a_refused_call_held_is_free_at_once(
    serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    errors: list[weakref.ref[BaseException]] = []

    def noted(error: BaseException) -> Status:
        errors.append(weakref.ref(error))
        return status_of(error)

    monkeypatch.setattr(grpc_gate, "status_of", noted)
    async with serve_teacher() as service, raw(service) as channel:
        gc.disable()  # which would find it later, when more has been gathered
        try:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(f"/stillhouse.teacher.v1.TeacherService/{method}", bytes, bytes)(b"\xff")
            await until(lambda: service._admission.num_in_flight == 0)
            # An error lives as long as its frames, and they hold the message.
            assert [error() for error in errors] == [None]
        finally:
            gc.enable()
