"""Mutated requests through HTTP: a documented problem each, a service that lives, and memory that stays."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections import Counter
from typing import Any

import h11
import pyarrow as pa
import pytest

from teacher_service import http_server
from teacher_service.http_door import bodies
from teacher_service.http_door.description import STATUSES
from tests.integration.http.speaking import ARROW, PROBLEM, ServeTeacher, http_to
from tests.integration.mutations import NUM_REQUESTS, MemoryWatch, mutated

# Of paths and methods that there are not; the others stand in the OpenAPI page.
DOCUMENTED = {200, 204, 404, 405, *(status for statuses in STATUSES.values() for status in statuses)} - {500}
MOST_GROWTH_BYTES = 700 * 2**20
AT_ONCE = 64

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "FOO", "post")
PATHS = ("/v1/logits",) * 20 + (
    "/livez", "/readyz", "/metrics", "/openapi.json", "/v1/teacher?include_tokens=1",
    "/v1/teacher?include_tokens=x&%ff",
    "/v1/output-head?value_type=float64", "/v1/output-head", "/v1/logits/", "/v1/logits?x=%00", "//v1//logits", "/%00",
    "/../../etc/passwd", "/%ff%fe", "/" + "a" * 9000, "*", "http://other/v1/logits",
)  # fmt: skip
HEADERS: dict[str, tuple[str, ...]] = {
    "accept": (ARROW, "*/*", "text/html", f"{ARROW};q=2", "application/json;q=0", "," * 300, "a/b;q=nan", ";;;=", "é"),
    "content-type": (
        "text/plain",
        "application/json; charset=utf-16",
        "",
        "application/JSON",
        "multipart/form-data",
        "/",
    ),
    "content-length": ("-1", "0", "1", "99999999999999999999999999", "abc", "1e3", "９", "7", "100000"),
    "transfer-encoding": ("chunked", "gzip, chunked", "identity"),
    "content-encoding": ("gzip", "identity", "br"),
    "expect": ("100-continue", "200-ok"),
    "authorization": ("Bearer", "Bearer \x80\xff", "Basic eDp5", "Bearer " + "x" * 5000),
    "connection": ("upgrade", "close, upgrade", "keep-alive"),
    "upgrade": ("websocket", "h2c"),
    "x-padding": ("x" * 20_000, "x" * 70_000),
}
ASKED: tuple[dict[str, Any], ...] = (
    {"sequences": [{"token_ids": [1, 2, 3]}]},
    {"sequences": [{"token_ids": [1, 2], "positions": "all"}], "encoding": {"kind": "top_k", "k": 4}, "temperature": 2},
    {"sequences": [{"token_ids": [1, 2], "positions": {"from": 1}}], "encoding": {"kind": "sampled", "draws": 9}},
    {"sequences": [{"token_ids": [9]}], "encoding": {"kind": "candidates", "token_ids": [1]}, "include_tokens": True},
    {"sequences": [{"token_ids": [9, 9], "positions": {"explicit": [0]}, "candidate_ids": [[1, 2]]}],
     "encoding": {"kind": "candidates"}},
    {"sequences": [{"token_ids": [1, 2, 3], "segment_lengths": [1, 2]}], "encoding": {"kind": "hidden"}},
)  # fmt: skip
VALUES: tuple[object, ...] = (
    None, True, -1, 0, 257, 2**31, 2**32, 2**64, 2**70, 10**400, 1.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"),
    "", "x" * 10_000, "\ud800", "\U0001f600", "all", [], {}, [[]] * 1000, {"from": -1}, {"from": 0, "explicit": []},
    [1] * 9000, [[1]], "@@DEEP@@", "@@DIGITS@@", "@@TWICE@@",
)  # fmt: skip


def wrong_value(content: Any, rng: random.Random) -> Any:
    """Return the JSON with one value, anywhere in it, replaced."""
    if not content or rng.random() < 0.25 or not isinstance(content, dict | list):
        return rng.choice(VALUES)
    if isinstance(content, dict):
        key = rng.choice([*content, "colour"])
        return {**content, key: wrong_value(content.get(key), rng)}
    index = rng.randrange(len(content))
    return [*content[:index], wrong_value(content[index], rng), *content[index + 1 :]]


def body_of(rng: random.Random) -> bytes:
    content: Any = rng.choice(ASKED)
    if rng.random() < 0.7:
        content = wrong_value(content, rng)
    text = json.dumps(content)
    text = text.replace('"@@DEEP@@"', "[" * 50_000 + "]" * 50_000).replace('"@@DIGITS@@"', "9" * 100_000)
    text = text.replace('"@@TWICE@@"', '{"from": 1, "from": 0}')
    encoding = "utf-16" if rng.random() < 0.02 else "utf-8"
    data = text.encode(encoding)
    return mutated(data, rng) if rng.random() < 0.3 else data


def request_of(rng: random.Random) -> tuple[bytes, str, bool]:
    """Return a request, its method, and whether it is HTTP that must be answered."""
    path, body = rng.choice(PATHS), body_of(rng)
    usual = "POST" if path == "/v1/logits" else "GET"
    method = usual if rng.random() < 0.8 else rng.choice(METHODS)
    headers = {"host": "teacher", "content-type": "application/json", "content-length": str(len(body))}
    if rng.random() < 0.4:
        for name in rng.sample(list(HEADERS), rng.randint(1, 3)):
            headers[name] = rng.choice(HEADERS[name])
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join([*lines, "", ""]).encode()
    if rng.random() < 0.1:
        return mutated(head, rng) + body, method, False
    return head + body, method, True


async def exchange(port: int, data: bytes, method: str) -> tuple[int, dict[str, str], bytes] | None:
    """Send a request as it is; return the first answer, or None where the connection ended without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="HEAD" if method == "HEAD" else "GET", target="/", headers=[("host", "t")]))
    connection.send(h11.EndOfMessage())
    status, headers, body = 0, dict[str, str](), b""
    try:
        writer.write(data)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await asyncio.wait_for(reader.read(2**16), 30))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, headers, body
            elif isinstance(event, h11.ConnectionClosed):
                return None
    except (ConnectionError, h11.RemoteProtocolError):
        return None
    finally:
        writer.close()


def check(status: int, headers: dict[str, str], body: bytes, method: str) -> None:
    """See that an answer is one that is described."""
    kind = headers.get("content-type", "")
    assert status in DOCUMENTED
    if status == 405:
        assert headers["allow"]
    if method == "HEAD" or status == 204:
        assert not body
    elif status >= 400:
        assert kind == PROBLEM
        problem = json.loads(body)
        assert problem.keys() == {"type", "title", "status", "detail"}
        assert problem["status"] == status
        assert "Traceback" not in problem["detail"]
    elif kind == ARROW:
        pa.ipc.open_stream(io.BytesIO(body)).read_all()
    elif kind == "application/json":
        json.loads(body)


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_mutated_requests_get_documented_answers_alone(
    serve_teacher: ServeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Most that announce more than they send are told so soon.
    monkeypatch.setattr(http_server, "_HEAD_SECONDS", 0.5)
    monkeypatch.setattr(bodies, "_BODY_SECONDS", 0.5)
    monkeypatch.setattr(bodies, "_DISCARD_SECONDS", 0.2)
    rng = random.Random(21)
    watch = MemoryWatch()
    seen: Counter[int | None] = Counter()
    async with serve_teacher() as service, http_to(service) as http:
        for _ in range(NUM_REQUESTS // AT_ONCE):
            asked = [request_of(rng) for _ in range(AT_ONCE)]
            answers = await asyncio.gather(*(exchange(service.http_port, data, method) for data, method, _ in asked))
            for answer, (data, method, must_be_answered) in zip(answers, asked, strict=True):
                try:
                    if answer is None:
                        assert not must_be_answered
                    else:
                        check(*answer, method)
                except (AssertionError, ValueError, KeyError) as error:
                    error.add_note(f"{answer!r:.600} to {data[:2000]!r}")
                    raise
                seen[None if answer is None else answer[0]] += 1
            watch.look()
        # Those that few mutations lead to (413, 408) have tests of their own: at reduced counts none may come here.
        assert {200, 400, 404, 405, 406, 415} <= set(seen), seen
        assert watch.growth < MOST_GROWTH_BYTES
        response = await http.post("/v1/logits", json={"sequences": [{"token_ids": [1]}]})
        assert response.json()["payloads"][0]["logits"][0][1] == 10.0
