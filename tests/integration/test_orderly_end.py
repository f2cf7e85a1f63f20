"""How a service ends: not ready at once, new calls refused in words, work in flight finished, whatever is left told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as SequenceOf
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stillhouse.client import AsyncTeacherClient
from stillhouse.errors import ConfigurationError, TeacherTimeoutError, TeacherUnavailableError
from stillhouse.request import LogitsRequest, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from teacher_service.backends import HiddenRows
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.service import TeacherService
from tests.waiting import until

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

NAME = "stillhouse.teacher.v1.TeacherService"


class SlowBackend(FixtureBackend):
    """Waits at a gate before each batch."""

    def __init__(self) -> None:
        super().__init__(64)
        self.gate = threading.Event()
        self.started = threading.Event()

    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        self.started.set()
        assert self.gate.wait(20)
        return super().forward(sequences)


def ask(first: int) -> LogitsRequest:
    return LogitsRequest((Sequence((first, 2, 3)),))


def client_of(service: TeacherService, **settings: object) -> AsyncTeacherClient:
    address = f"127.0.0.1:{service.grpc_port}"
    return AsyncTeacherClient(address, max_attempts=1, **settings)  # type: ignore[arg-type]  # a test's shorthand


@asynccontextmanager
async def draining(
    serve_teacher: ServeTeacher, backend: SlowBackend, **settings: object
) -> AsyncIterator[tuple[TeacherService, list[asyncio.Task[object]], asyncio.Task[None]]]:
    """A service that drains while one of its calls computes and others queue."""
    async with serve_teacher(None, backend, max_batch_tokens=3, **settings) as service, client_of(service) as client:
        await client.describe()
        asked: list[asyncio.Task[object]] = [asyncio.create_task(client.answer(ask(n))) for n in range(4)]
        await until(lambda: backend.started.is_set() and service._admission.num_in_flight == 4)
        closing = asyncio.create_task(service.close())
        await until(lambda: service.lifecycle.phase == "draining")
        yield service, asked, closing
        backend.gate.set()
        await closing
        await asyncio.gather(*asked, return_exceptions=True)


async def test_what_is_in_flight_and_queued_is_finished(serve_teacher: ServeTeacher) -> None:
    backend = SlowBackend()
    async with draining(serve_teacher, backend) as (_, asked, closing):
        assert not closing.done()
        backend.gate.set()
        assert len(await asyncio.gather(*asked)) == 4
        await closing


async def test_new_calls_are_refused_in_words_on_old_and_new_connections(serve_teacher: ServeTeacher) -> None:
    async with (
        serve_teacher() as open_one,
        grpc.aio.insecure_channel(f"127.0.0.1:{open_one.grpc_port}") as old,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{open_one.http_port}") as old_http,
    ):
        ask_old = old.unary_unary(f"/{NAME}/GetTeacher", bytes, bytes)
        await ask_old(b"")
        assert (await old_http.get("/v1/teacher")).status_code == 200
        place = open_one._admission.enter(None)  # somebody whose work goes on
        closing = asyncio.create_task(open_one.close())
        await until(lambda: open_one.lifecycle.phase == "draining")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{open_one.grpc_port}") as new:
            for channel in (old, new):
                for method in ("GetTeacher", "ComputeLogits", "StreamLogits", "GetOutputHead"):
                    with pytest.raises(grpc.aio.AioRpcError, match="the teacher is draining") as refusal:
                        await channel.unary_unary(f"/{NAME}/{method}", bytes, bytes)(b"", timeout=10)
                    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
                health = health_pb2_grpc.HealthStub(channel)
                answer = await health.Check(health_pb2.HealthCheckRequest(service=NAME))
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{open_one.http_port}") as new_http:
            for http in (old_http, new_http):
                assert (await http.get("/livez")).status_code == 200
                ready = await http.get("/readyz")
                assert (ready.status_code, ready.json()["status"]) == (503, "draining")
                refused = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]})
                assert refused.status_code == 503
                assert "draining" in refused.json()["detail"]
        assert not closing.done()
        place.leave()
        await closing


async def test_what_outlives_the_grace_is_told_so(serve_teacher: ServeTeacher) -> None:
    backend = SlowBackend()
    async with draining(serve_teacher, backend, grace_seconds=0.2) as (_, asked, closing):
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in outcomes] == [TeacherUnavailableError] * 4
        assert all("stopped before it could answer" in str(one) for one in outcomes)
        backend.gate.set()
        await closing


async def test_a_request_over_http_that_outlives_the_grace_is_told_so(serve_teacher: ServeTeacher) -> None:
    backend = SlowBackend()
    async with (
        serve_teacher(None, backend, grace_seconds=0.2) as service,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http,
    ):
        asked = asyncio.create_task(http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]}))
        await asyncio.to_thread(backend.started.wait, 10)
        closing = asyncio.create_task(service.close())
        answer = await asked
        assert (answer.status_code, answer.json()["title"]) == (503, "TeacherUnavailable")
        backend.gate.set()
        await closing


async def test_a_call_without_a_deadline_is_given_one(serve_teacher: ServeTeacher) -> None:
    backend = SlowBackend()
    async with serve_teacher(None, backend, max_call_seconds=0.2) as service, client_of(service) as client:
        with pytest.raises(TeacherTimeoutError, match=r"longer than 0\.2 s"):
            await client.answer(ask(1))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http:
            answer = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]})
            assert answer.status_code == 504
        await until(lambda: service._admission.num_in_flight == 0)
        backend.gate.set()


async def test_while_weights_load_readiness_says_how_far(serve_teacher: ServeTeacher) -> None:
    async with (
        serve_teacher(tokens="right-token-0123456789") as service,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as http,
    ):
        service.lifecycle.phase = "loading"
        with service.lifecycle.progress.heard():
            from teacher_service.progress import report

            report("weights", 1, 4)
        assert (await http.get("/readyz")).json() == {"status": "loading"}
        detail = await http.get("/readyz", headers={"authorization": "Bearer right-token-0123456789"})
        assert detail.json() == {"status": "loading", "progress": "weights 25%"}


async def test_the_ready_file_of_the_service_that_has_the_port_is_left_alone(
    serve_teacher: ServeTeacher, tmp_path: Path
) -> None:
    ready_file = tmp_path / "ready.json"
    async with serve_teacher(ready_file=ready_file) as first:
        content = ready_file.read_text()
        with pytest.raises(ConfigurationError, match="http_port: cannot listen"):
            async with serve_teacher(ready_file=ready_file, http_port=first.http_port):
                pass
        assert ready_file.read_text() == content
    assert not ready_file.exists()


async def test_no_call_is_cancelled_by_the_end(serve_teacher: ServeTeacher) -> None:
    ended: list[grpc.StatusCode] = []

    async def ask_until_it_is_gone(address: str) -> None:
        message = pb.LogitsRequest(sequences=[pb.Sequence(token_ids=[1])], dense=pb.DenseEncoding())
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = pb_grpc.TeacherServiceStub(channel)
            try:
                while await stub.ComputeLogits(pb.ComputeLogitsRequest(request=message), timeout=20):
                    answered.set()
            except grpc.aio.AioRpcError as error:
                ended.append(error.code())

    for _ in range(5):
        answered = asyncio.Event()
        async with serve_teacher() as service:
            asking = [asyncio.create_task(ask_until_it_is_gone(f"127.0.0.1:{service.grpc_port}")) for _ in range(12)]
            await answered.wait()
        await asyncio.gather(*asking)
    # What a client tries again, at another replica.
    assert set(ended) == {grpc.StatusCode.UNAVAILABLE}
