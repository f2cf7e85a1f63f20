"""The contract's messages over HTTP: the same answers as over gRPC, to the byte, and the same refusals."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import pytest
import torch

from stillhouse.client import TeacherClient
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
    UnauthenticatedError,
)
from stillhouse.request import LogitsRequest, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service.service import TeacherService
from tests.integration.counting_backend import CountingBackend
from tests.integration.http.by_message import MESSAGE, SENT, about, body, grpc_client, http_client
from tests.integration.http.speaking import PROBLEM, HeldBackend, ServeTeacher, http_to
from tests.integration.raw_calls import until_empty, value
from tests.waiting import until

ENCODINGS: list[Encoding] = [
    Dense(), Dense("float16"), Dense("bfloat16"), Hidden(), Hidden("float32"), TopK(3), TopK(64, "float32"),
    Sampled(50, 7), Candidates((0, 7, 9)), Candidates((5,), "float16"),
]  # fmt: skip


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


async def test_requests_are_counted_and_named_like_any(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_client(service) as client:
        await client.describe()
        await client.answer(about(2, 3))
        counted = {"method": "POST /v1/logits", "code": "200"}
        await until(lambda: value(service, "teacher_requests_total", **counted) == 1)
        (slowest, *_) = service._doors.http_door._messages._notes.slowest()  # type: ignore[attr-defined]  # a gate
        assert (slowest.method, slowest.sequences, slowest.tokens) == ("POST /v1/logits", 2, 5)


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
