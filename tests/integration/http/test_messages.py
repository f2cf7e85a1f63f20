"""The contract's messages over HTTP: the same answers as over gRPC, to the byte, and the same refusals."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch

from stillhouse.answer_messages import read_answer
from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.codec import encode_payload
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import (
    EncodingNotOfferedError,
    FingerprintMismatchError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    RequestTooLongError,
    TeacherError,
    TeacherUnavailableError,
    UnauthenticatedError,
)
from stillhouse.messages import request_to_proto
from stillhouse.request import All, LogitsRequest, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service import http_server
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.service import TeacherService
from tests.integration.counting_backend import CountingBackend
from tests.integration.http.speaking import PROBLEM, HeldBackend, ServeTeacher, http_to
from tests.integration.raw_calls import until_empty, value
from tests.waiting import until

MESSAGE = "application/protobuf"
SENT = {"content-type": MESSAGE}
ENCODINGS: list[Encoding] = [
    Dense(), Dense("float16"), Dense("bfloat16"), Hidden(), Hidden("float32"), TopK(3), TopK(64, "float32"),
    Sampled(50, 7), Candidates((0, 7, 9)), Candidates((5,), "float16"),
]  # fmt: skip


def about(*lengths: int, encoding: Encoding | None = None, **more: Any) -> LogitsRequest:
    rows = (tuple((index * 7 + place) % 60 for place in range(length)) for index, length in enumerate(lengths))
    return LogitsRequest(tuple(Sequence(row, (), All()) for row in rows), encoding or Dense(), **more)


def body(request: LogitsRequest) -> bytes:
    return pb.ComputeLogitsRequest(request=request_to_proto(request)).SerializeToString()


def raw(kind: str, data: bytes) -> bytes:
    head = f"POST /v1/logits HTTP/1.1\r\nhost: t\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def http_client(service: TeacherService, **options: Any) -> AsyncTeacherClient:
    return AsyncTeacherClient(f"http://127.0.0.1:{service.http_port}", **{"max_attempts": 1, **options})


def grpc_client(service: TeacherService, **options: Any) -> AsyncTeacherClient:
    return AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}", **{"max_attempts": 1, **options})


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
async def test_every_encoding_is_answered_as_over_grpc(serve_teacher: ServeTeacher, encoding: Encoding) -> None:
    async with serve_teacher() as service, http_client(service) as ours, grpc_client(service) as theirs:
        for lengths in ((3,), (1, 5, 2), (400, 1, 900)):
            request = about(*lengths, encoding=encoding, temperature=2.0)
            found, expected = await ours.answer(request), await theirs.answer(request)
            assert list(map(encode_payload, found.payloads)) == list(map(encode_payload, expected.payloads))
            assert (found.fingerprint, found.num_bytes) == (expected.fingerprint, expected.num_bytes)
        assert (await ours.answer(about())).payloads == ()


async def test_the_teacher_and_its_head_are_those_of_grpc(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_client(service) as ours, grpc_client(service) as theirs:
        for include_tokens in (False, True):
            found = await ours.describe(include_tokens=include_tokens)
            assert found == await theirs.describe(include_tokens=include_tokens)
        for value_type in (None, "float32", "bfloat16"):
            head, expected = await ours.output_head(value_type), await theirs.output_head(value_type)
            assert torch.equal(head.weight, expected.weight)
            assert head.weight.dtype is expected.weight.dtype
            assert (head.scale, head.soft_cap) == (expected.scale, expected.soft_cap)


async def test_a_thread_asks_as_a_task_does(serve_teacher: ServeTeacher) -> None:
    def ask(service: TeacherService) -> list[bytes]:
        with TeacherClient(f"http://127.0.0.1:{service.http_port}") as client:
            return list(map(encode_payload, client.answer(about(3, 400)).payloads))

    async with serve_teacher() as service, grpc_client(service) as theirs:
        expected = list(map(encode_payload, (await theirs.answer(about(3, 400))).payloads))
        assert await asyncio.to_thread(ask, service) == expected


@pytest.mark.parametrize("count", [1, 40])
async def test_many_at_once_are_each_answered(serve_teacher: ServeTeacher, count: int) -> None:
    async with serve_teacher() as service, http_client(service) as ours, grpc_client(service) as theirs:
        requests = [about(1 + index % 5, 300 + index) for index in range(count)]
        found = await asyncio.gather(*map(ours.answer, requests))
        for request, answer in zip(requests, found, strict=True):
            expected = await theirs.answer(request)
            assert list(map(encode_payload, answer.payloads)) == list(map(encode_payload, expected.payloads))
        await until_empty(service)


async def test_what_is_remembered_is_answered_from_the_cache(serve_teacher: ServeTeacher, valkey_url: str) -> None:
    backend = CountingBackend()
    async with serve_teacher(valkey_url, backend) as service, http_client(service) as ours:
        first = await ours.answer(about(3, 400, temperature=1.25))
        again = await ours.answer(about(3, 400, temperature=1.25))
    assert (first.cache_hits, again.cache_hits) == (0, 2)
    assert list(map(encode_payload, first.payloads)) == list(map(encode_payload, again.payloads))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (LogitsRequest((Sequence((10**6,)),)), InvalidRequestError),
        (LogitsRequest((Sequence((1,)),), expected_fingerprint="cc"), FingerprintMismatchError),
        (LogitsRequest((Sequence((1,) * 5000),)), RequestTooLongError),
    ],
)
async def test_refusals_are_those_of_grpc(
    serve_teacher: ServeTeacher, request_: LogitsRequest, error: type[TeacherError]
) -> None:
    async with serve_teacher(max_sequence_tokens=4000) as service, http_to(service) as http:
        response = await http.post("/v1/logits", content=body(request_), headers=SENT)
        assert (response.status_code, response.headers["content-type"]) == (error.http_status, PROBLEM)
        assert response.json()["type"] == f"urn:stillhouse:error:{error.__name__}"
        async with grpc_client(service) as client:
            with pytest.raises(error) as raised:
                await client.answer(request_)
        if error is not FingerprintMismatchError:  # which a client of ours sees before the service does
            assert response.json()["detail"] == str(raised.value)


async def test_a_teacher_without_hidden_states_has_no_head(serve_teacher: ServeTeacher) -> None:
    backend = HeldBackend()
    backend.output_head = lambda: None  # type: ignore[method-assign]  # such a backend
    async with serve_teacher(None, backend) as service, http_client(service) as client, http_to(service) as http:
        with pytest.raises(EncodingNotOfferedError):
            await client.output_head()
        response = await http.get("/v1/output-head", headers={"accept": "application/vnd.stillhouse.payload"})
        assert (response.status_code, response.headers["content-type"]) == (501, PROBLEM)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (SENT, 200),
        (SENT | {"accept": "*/*"}, 200),
        (SENT | {"accept": "application/*"}, 200),
        ({"content-type": "Application/Protobuf; charset=binary"}, 200),
        (SENT | {"accept": "application/json"}, 406),
        (SENT | {"accept": "application/protobuf;q=0"}, 406),
        (SENT | {"content-encoding": "gzip"}, 415),
        ({"content-type": "application/json", "accept": MESSAGE}, 406),
        ({"content-type": "application/x-protobuf"}, 415),
        ({"content-type": "application/octet-stream"}, 415),
        ({}, 415),
    ],
)
async def test_a_message_is_what_says_that_it_is_one(
    serve_teacher: ServeTeacher, headers: dict[str, str], status: int
) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        response = await http.post("/v1/logits", content=body(about(2)), headers=headers)
        assert response.status_code == status
        assert response.headers["content-type"] == (MESSAGE if status == 200 else PROBLEM)


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x05abc", b"{}", b"\x0a\xff\xff\xff\xff\x7f" + b"a" * 100])
async def test_what_is_no_message_is_refused(serve_teacher: ServeTeacher, data: bytes) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        response = await http.post("/v1/logits", content=data, headers=SENT)
        assert response.status_code == 400
        assert f"the body of {len(data)} bytes is no ComputeLogitsRequest" in response.json()["detail"]


async def test_only_whoever_may_is_answered(serve_teacher: ServeTeacher) -> None:
    tokens = "teacher-token-0123456789"
    async with serve_teacher(tokens=tokens, scrape_token="scrape-token-0123456789") as service:
        for token, error in (
            (None, UnauthenticatedError), ("wrong-token-0123456789", UnauthenticatedError),
            ("scrape-token-0123456789", PermissionDeniedError),
        ):  # fmt: skip
            async with http_client(service, token=token) as client:
                for call in (client.describe, lambda client=client: client.logits([[1]])):
                    with pytest.raises(error):
                        await call()
            async with http_to(service, token) as http:
                answer = await http.post("/v1/logits", content=body(about(1)), headers=SENT)
                assert answer.status_code == error.http_status
        async with http_client(service, token=tokens) as client:
            assert len(await client.logits([[1, 2]])) == 1


async def test_a_bound_says_when_to_come_again(serve_teacher: ServeTeacher) -> None:
    backend = HeldBackend()
    async with (
        serve_teacher(None, backend, tokens="teacher-token-0123456789", max_requests_per_token=1) as service,
        http_client(service, token="teacher-token-0123456789") as client,
    ):
        await client.describe()
        first = asyncio.create_task(client.answer(about(2)))
        await until(backend.started.is_set)
        with pytest.raises(OverloadedError) as refused:
            await client.answer(about(3))
        assert refused.value.retry_after_seconds == 0.25
        backend.gate.set()
        assert len((await first).payloads) == 1


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
        data = body(request)
        writer.write(raw(MESSAGE, data))
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
        monkeypatch.setattr(http_server._BoundedProtocol, "_send_now", lambda _, parts: parts)
    request = about(*[700] * 12)
    async with serve_teacher(None, FixtureBackend(500)) as service, grpc_client(service) as theirs:
        expected = await theirs.answer(request)
        reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port, limit=2**16)
        data = body(request)
        writer.write(raw(MESSAGE, data))
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


async def test_requests_are_counted_and_named_like_any(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_client(service) as client:
        await client.describe()
        await client.answer(about(2, 3))
        counted = {"method": "POST /v1/logits", "code": "200"}
        await until(lambda: value(service, "teacher_requests_total", **counted) == 1)
        (slowest, *_) = service._doors.http_door._messages._notes.slowest()  # type: ignore[attr-defined]  # a gate
        assert (slowest.method, slowest.sequences, slowest.tokens) == ("POST /v1/logits", 2, 5)


async def test_connections_leave_nothing_open(serve_teacher: ServeTeacher) -> None:
    """Of what a large answer is sent through, one file each, all are closed when its connection is."""
    import os
    from pathlib import Path

    def open_files() -> int:
        gc.collect()
        return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))

    async with serve_teacher(None, FixtureBackend(500)) as service:
        before = open_files()
        for _ in range(3):
            async with http_client(service) as client:
                await asyncio.gather(*(client.answer(about(200, 200 + n)) for n in range(4)))
        await until(lambda: open_files() <= before)


async def test_one_larger_than_a_message_may_be_is_refused(
    serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    from teacher_service.http_door import message_door

    monkeypatch.setattr(message_door, "_MOST_PAYLOAD_BYTES", 10_000)
    async with serve_teacher() as service, http_client(service) as client:
        assert len((await client.answer(about(2))).payloads) == 1
        with pytest.raises(RequestTooLongError, match="over the limit of one message of 10000"):
            await client.answer(about(400))


async def test_a_client_that_is_not_ours_is_answered_by_what_proto_says(serve_teacher: ServeTeacher) -> None:
    """With protobuf and any HTTP client alone."""
    async with serve_teacher() as service, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{service.http_port}"
        said = await http.get(f"{url}/v1/teacher", headers={"accept": MESSAGE})
        teacher = pb.GetTeacherResponse.FromString(said.content)
        asked = pb.ComputeLogitsRequest()
        asked.request.sequences.add().token_ids.extend([1, 2, 3])
        asked.request.dense.value_type = pb.VALUE_TYPE_FLOAT32
        response = await http.post(f"{url}/v1/logits", content=asked.SerializeToString(), headers=SENT)
        message = pb.ComputeLogitsResponse.FromString(response.content)
        assert message.fingerprint == teacher.fingerprint
        async with grpc_client(service) as client:
            expected = await client.answer(replace(about(3), sequences=(Sequence((1, 2, 3)),)))
        assert list(message.payloads) == list(map(encode_payload, expected.payloads))
