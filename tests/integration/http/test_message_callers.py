"""The contract's messages over HTTP: callers that leave, read nothing, slowly or much at once, and an end in order."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest

from stillhouse.answer_messages import read_answer
from stillhouse.codec import encode_payload
from stillhouse.errors import TeacherUnavailableError
from stillhouse.request import LogitsRequest, Sequence
from teacher_service import sending
from teacher_service.backends.fixture import FixtureBackend
from tests.integration.http.by_message import MESSAGE, about, body, grpc_client, http_client, raw
from tests.integration.http.speaking import HeldBackend, ServeTeacher
from tests.integration.raw_calls import until_empty, value
from tests.waiting import until


async def test_what_nobody_waits_for_any_more_is_not_computed(serve_teacher: ServeTeacher) -> None:
    backend = HeldBackend()
    async with serve_teacher(None, backend, max_batch_tokens=2) as service, http_client(service) as client:
        await client.describe()
        first = asyncio.create_task(client.answer(about(2)))
        await until(backend.started.is_set)
        second = asyncio.create_task(client.answer(LogitsRequest((Sequence((9, 9)),))))
        await until(lambda: service._admission.num_in_flight == 2)
        second.cancel()
        await until(lambda: service._admission.num_in_flight == 1)
        backend.gate.set()
        await first
        await until_empty(service)
        assert backend.num_tokens == 2


async def test_a_caller_that_reads_nothing_is_given_up(serve_teacher: ServeTeacher) -> None:
    """With an answer larger than the buffers in between, of which nothing stays held."""
    request = about(*[500] * 4)
    async with serve_teacher(None, FixtureBackend(4000), send_stall_seconds=0.3) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port, limit=1024)
        writer.write(raw(MESSAGE, body(request)))
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: value(service, "teacher_held_bytes") > 0)
        await until_empty(service)
        assert value(service, "teacher_held_bytes") == 0
        writer.transport.abort()


@pytest.mark.parametrize("sends", ["by itself", "by uvloop"])
async def test_a_caller_that_reads_slowly_has_all_of_its_answer(
    serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch, sends: str
) -> None:
    if sends == "by uvloop":
        monkeypatch.setattr(sending.Sender, "_send_now", lambda _, parts: parts)
    request = about(*[700] * 12)
    async with serve_teacher(None, FixtureBackend(500)) as service, grpc_client(service) as theirs:
        expected = await theirs.answer(request)
        reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port, limit=2**16)
        writer.write(raw(MESSAGE, body(request)))
        said = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(said.partition("content-length: ")[2].partition("\r\n")[0])
        read = bytearray()
        while len(read) < length:
            read += await reader.read(150_001)
            await asyncio.sleep(0)
        writer.close()
        answer = read_answer(bytes(read))
        assert [bytes(payload) for payload in answer.payloads] == list(map(encode_payload, expected.payloads))


async def test_requests_sent_one_behind_the_other_are_answered_in_their_order(serve_teacher: ServeTeacher) -> None:
    """On one connection, with an answer of JSON among them, and more than the buffers hold."""
    asked = [about(600, 500), about(1), about(500, 600)]
    json_body = b'{"sequences": [{"token_ids": [1]}]}'
    async with serve_teacher(None, FixtureBackend(800)) as service, grpc_client(service) as theirs:
        expected = [await theirs.answer(request) for request in asked]
        kinds = [(MESSAGE, body(asked[0])), (MESSAGE, body(asked[1])), ("application/json", json_body),
                 (MESSAGE, body(asked[2]))]  # fmt: skip
        reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port)
        for kind, data in kinds:
            writer.write(raw(kind, data))
        came = []
        for kind, _ in kinds:
            said = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert f"content-type: {kind}" in said
            data = await reader.readexactly(int(said.partition("content-length: ")[2].partition("\r\n")[0]))
            if kind == MESSAGE:
                came.append([bytes(payload) for payload in read_answer(data).payloads])
        writer.close()
        assert came == [list(map(encode_payload, answer.payloads)) for answer in expected]


async def test_an_end_in_order_finishes_what_is_in_flight(serve_teacher: ServeTeacher) -> None:
    backend = HeldBackend()
    async with serve_teacher(None, backend) as service, http_client(service) as client:
        await client.describe()
        asked = asyncio.create_task(client.answer(about(3, 400)))
        await until(backend.started.is_set)
        closing = asyncio.create_task(service.close())
        await until(lambda: service.lifecycle.phase == "draining")
        with pytest.raises(TeacherUnavailableError, match="draining"):
            await client.answer(about(5))
        backend.gate.set()
        assert len((await asked).payloads) == 2
        await closing


async def test_what_is_not_finished_within_the_grace_is_told_so(serve_teacher: ServeTeacher) -> None:
    backend = HeldBackend()
    async with serve_teacher(None, backend, grace_seconds=0.2) as service, http_client(service) as client:
        await client.describe()
        asked = asyncio.create_task(client.answer(about(3)))
        await until(backend.started.is_set)
        closing = asyncio.create_task(service.close())
        with pytest.raises(TeacherUnavailableError):
            await asked
        backend.gate.set()
        await closing


async def test_connections_leave_nothing_open(serve_teacher: ServeTeacher) -> None:
    """Of what a large answer is sent through, one file each, all are closed when its connection is."""

    def open_files() -> int:
        gc.collect()
        return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))

    async with serve_teacher(None, FixtureBackend(500)) as service:
        before = open_files()
        for _ in range(3):
            async with http_client(service) as client:
                await asyncio.gather(*(client.answer(about(200, 200 + n)) for n in range(4)))
        await until(lambda: open_files() <= before)
