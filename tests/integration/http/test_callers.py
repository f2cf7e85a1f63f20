"""Callers that send too much, too little, or go away: bounded, told why, and worked for only while they are there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from teacher_service import http_server
from teacher_service.http_door import bodies
from teacher_service.service import TeacherService
from tests.integration.http.speaking import ARROW, PROBLEM, HeldBackend, ServeTeacher, http_to
from tests.integration.raw_calls import value
from tests.waiting import until

ASKED = json.dumps({"sequences": [{"token_ids": [1, 2, 3]}]}).encode()
LIMIT = 2**21


async def exchange(service: TeacherService, *parts: bytes) -> bytes:
    """Send bytes as they are, and return all that comes until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


def head(*lines: str) -> bytes:
    fixed = ("POST /v1/logits HTTP/1.1", "host: teacher", "content-type: application/json", "connection: close")
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


async def test_a_body_of_unknown_length_is_read_within_the_bound(serve_teacher: ServeTeacher) -> None:
    async def chunks(size: int) -> AsyncIterator[bytes]:
        yield ASKED
        for _ in range(size // 2**16):
            yield b" " * 2**16

    async with serve_teacher(max_http_body_bytes=LIMIT) as service, http_to(service) as http:
        headers = {"content-type": "application/json"}
        assert (await http.post("/v1/logits", content=chunks(0), headers=headers)).status_code == 200
        response = await http.post("/v1/logits", content=chunks(2 * LIMIT), headers=headers)
        assert (response.status_code, response.headers["content-type"]) == (413, PROBLEM)
        assert (await http.post("/v1/logits", content=ASKED, headers=headers)).status_code == 200


@pytest.mark.parametrize("times", [1, 3])
async def test_whoever_sends_too_much_is_told_so(serve_teacher: ServeTeacher, times: int) -> None:
    async with serve_teacher(max_http_body_bytes=LIMIT) as service:
        size = LIMIT * times + 1
        answer = await exchange(service, head(f"content-length: {size}"), b" " * size)
        assert answer.startswith(b"HTTP/1.1 413")
        assert PROBLEM.encode() in answer
        # Nothing was read into memory on the way.
        assert b"content-length" in answer


async def test_whoever_asks_first_need_not_send_a_body_that_is_too_large(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher(max_http_body_bytes=LIMIT) as service:
        answer = await exchange(service, head(f"content-length: {10 * LIMIT}", "expect: 100-continue"))
        assert answer.startswith(b"HTTP/1.1 413")
        answer = await exchange(service, head(f"content-length: {len(ASKED)}", "expect: 100-continue"), ASKED)
        assert answer.startswith(b"HTTP/1.1 100")
        assert b"HTTP/1.1 200" in answer


async def test_a_body_that_does_not_come_is_not_waited_for(
    serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_BODY_SECONDS", 0.1)
    monkeypatch.setattr(bodies, "_DISCARD_SECONDS", 0.1)
    async with serve_teacher() as service:
        answer = await exchange(service, head("content-length: 100"), b"{")
        assert answer.startswith(b"HTTP/1.1 408")


async def test_bodies_in_flight_are_bounded_together(
    serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_BODIES_TOGETHER", 1)
    backend = HeldBackend()
    async with serve_teacher(given=backend, max_http_body_bytes=2000) as service, http_to(service) as http:
        headers = {"content-type": "application/json"}
        first = asyncio.create_task(http.post("/v1/logits", content=ASKED.ljust(1500), headers=headers))
        await until(backend.started.is_set)
        response = await http.post("/v1/logits", content=ASKED.ljust(1500), headers=headers)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        backend.gate.set()
        assert (await first).status_code == 200
        assert (await http.post("/v1/logits", content=ASKED.ljust(1500), headers=headers)).status_code == 200


async def test_the_work_of_a_caller_that_has_gone_never_reaches_the_model(serve_teacher: ServeTeacher) -> None:
    backend = HeldBackend()
    async with serve_teacher(given=backend) as service, http_to(service) as http:
        computing = asyncio.create_task(http.post("/v1/logits", json={"sequences": [{"token_ids": [1] * 5}]}))
        await until(backend.started.is_set)
        reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port)
        waiting = json.dumps({"sequences": [{"token_ids": [2] * 1000}]}).encode()
        writer.write(head(f"content-length: {len(waiting)}") + waiting)
        await until(lambda: value(service, "teacher_queue_tokens") == 1005)
        writer.close()
        await until(lambda: value(service, "teacher_queue_tokens") == 5)
        backend.gate.set()
        assert (await computing).status_code == 200
        assert (await http.post("/v1/logits", json={"sequences": [{"token_ids": [3]}]})).status_code == 200
        assert backend.num_tokens == 6
        assert value(service, "teacher_requests_total", method="POST /v1/logits", code="499") == 1
        del reader


async def test_a_slow_reader_holds_its_answer_and_no_more(serve_teacher: ServeTeacher) -> None:
    """What is not read is not made: the answer is 80 MB of Arrow, and stays in the service as its payload alone."""
    asked = {"sequences": [{"token_ids": [1] * 5000, "positions": "all"}], "cache_mode": "bypass"}
    body = json.dumps(asked).encode()
    async with serve_teacher(fixture_vocabulary_size=4000) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port, limit=2**16)
        writer.write(head(f"content-length: {len(body)}", f"accept: {ARROW}") + body)
        await until(lambda: value(service, "teacher_held_bytes") > 80_000_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert value(service, "teacher_requests_total", method="POST /v1/logits", code="200") == 0
        rest = await asyncio.wait_for(reader.read(), 60)
        assert len(rest) > 80_000_000
        await until(lambda: value(service, "teacher_held_bytes") == 0)
        # Counted behind the last byte.
        await until(lambda: value(service, "teacher_requests_total", method="POST /v1/logits", code="200") == 1)
        writer.close()


async def test_a_call_that_takes_too_long_is_told_so(serve_teacher: ServeTeacher) -> None:
    backend = HeldBackend()
    async with serve_teacher(given=backend, max_call_seconds=0.3) as service, http_to(service) as http:
        response = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]})
        assert (response.status_code, response.headers["content-type"]) == (504, PROBLEM)
        backend.gate.set()


async def test_a_full_queue_says_when_to_come_again(serve_teacher: ServeTeacher) -> None:
    backend = HeldBackend()
    async with serve_teacher(given=backend, max_concurrent_requests=1) as service, http_to(service) as http:
        first = asyncio.create_task(http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]}))
        await until(backend.started.is_set)
        response = await http.post("/v1/logits", json={"sequences": [{"token_ids": [2]}]})
        assert (response.status_code, response.headers["content-type"]) == (429, PROBLEM)
        assert int(response.headers["retry-after"]) >= 1
        backend.gate.set()
        assert (await first).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "application/json; charset=latin-1"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json; charset=UTF-8"}, 200),
        ({"content-type": "application/vnd.stillhouse+json"}, 200),
    ],
)
async def test_a_body_is_plain_json(serve_teacher: ServeTeacher, headers: dict[str, str], status: int) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        response = await http.post("/v1/logits", content=ASKED, headers=headers)
        assert response.status_code == status


async def test_bytes_that_are_no_http_are_a_problem(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service:
        answer = await exchange(service, b"\x16\x03\x01 hello\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400")
        assert PROBLEM.encode() in answer


async def test_head_and_options_are_answered(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        whole, alone = await http.get("/v1/teacher"), await http.head("/v1/teacher")
        assert (alone.status_code, alone.content) == (200, b"")
        assert alone.headers["content-length"] == whole.headers["content-length"]
        allowed = {"/v1/teacher": {"GET", "HEAD", "OPTIONS"}, "/v1/logits": {"POST", "OPTIONS"}}
        for path, methods in allowed.items():
            for method, status in (("OPTIONS", 204), ("DELETE", 405), ("TRACE", 405)):
                response = await http.request(method, path)
                assert response.status_code == status
                assert set(response.headers["allow"].split(", ")) == methods
        assert (await http.head("/v1/logits")).status_code == 405


async def test_a_connection_serves_many_requests(serve_teacher: ServeTeacher) -> None:
    async with serve_teacher() as service, http_to(service) as http:
        statuses = []
        for body in (ASKED, b"nonsense", ASKED):
            response = await http.post("/v1/logits", content=body, headers={"content-type": "application/json"})
            statuses.append(response.status_code)
            assert "connection" not in response.headers
        assert statuses == [200, 400, 200]
        assert isinstance(http, httpx.AsyncClient)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /livez HTTP/1.1\r\nhost: t\r\n" + b"x: yyyyyyyyyyyyyyyyyyyy\r\n" * 2000 + b"\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: t\r\n\r\n",
    ],
    ids=["many fields", "a long path"],
)
async def test_a_head_has_a_bound(serve_teacher: ServeTeacher, sent: bytes) -> None:
    async with serve_teacher() as service:
        answer = await exchange(service, sent)
        assert answer.startswith(b"HTTP/1.1 400")
        assert PROBLEM.encode() in answer


async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, more: bytes) -> bytes:
    """Send without an end until the other side has closed; return what it said before, as far as that came."""
    said = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(http_server._HEAD_SECONDS / 2):
            for _ in range(200):
                writer.write(more)
                await writer.drain()
            said = await reader.read()
    writer.close()
    return said


@pytest.mark.parametrize("begun", [b"GET /livez HTTP/1.1\r\nhost: t\r\nx: ", b"GET /"], ids=["field", "path"])
async def test_a_head_without_an_end_has_the_same_bound(serve_teacher: ServeTeacher, begun: bytes) -> None:
    """Long before it would have to be whole."""
    async with serve_teacher() as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port)
        writer.write(begun)
        assert (await until_closed(reader, writer, b"y" * 20_000))[:12] in (b"", b"HTTP/1.1 400")


async def test_a_head_that_comes_while_a_request_is_under_way_has_the_same_bound(serve_teacher: ServeTeacher) -> None:
    backend = HeldBackend()
    async with serve_teacher(given=backend) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port)
        writer.write(head(f"content-length: {len(ASKED)}").replace(b"close", b"keep-alive") + ASKED)
        await until(backend.started.is_set)
        writer.write(b"GET /livez HTTP/1.1\r\nx: ")
        assert b"200 OK" not in await until_closed(reader, writer, b"y" * 20_000)
        await until(lambda: service._admission.num_in_flight == 0)
        backend.gate.set()


async def test_a_request_right_behind_a_large_one_is_within_the_bound(serve_teacher: ServeTeacher) -> None:
    large = ASKED.ljust(100_000)
    kept = head(f"content-length: {len(large)}").replace(b"close", b"keep-alive")
    async with serve_teacher() as service:
        answer = await exchange(service, kept + large + head(f"content-length: {len(ASKED)}") + ASKED)
        assert answer.count(b"HTTP/1.1 200") == 2
