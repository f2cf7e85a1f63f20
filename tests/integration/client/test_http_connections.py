"""A client's connections over HTTP: kept, given up when they are old, and waited for no longer than a call may take."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from stillhouse import http_connection
from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.errors import (
    CodecError,
    StillhouseError,
    StreamError,
    TeacherInternalError,
    TeacherTimeoutError,
    TeacherUnavailableError,
)
from stillhouse.http_address import HttpAddress
from stillhouse.http_connection import Connections, Ongoing
from stillhouse.messages import description_to_proto
from tests.integration.client.http_table import serving_http
from tests.integration.client.table_teacher import DESCRIPTION, LARGE, SMALL, TABLE, TableServicer
from tests.waiting import until

DESCRIBED = description_to_proto(DESCRIPTION).SerializeToString()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/protobuf\r\n"

Talk = Callable[[socket.socket, bytes], None]
"""Answers a request, of which the first bytes are given."""


@contextmanager
def talking(*talks: Talk) -> Iterator[str]:
    """Serve connections one after the other, each by the next of the talks, the last one for all that follow."""
    left = list(talks)
    opened: list[socket.socket] = []

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                opened.append(connection)
                threading.Thread(target=serve, args=(connection, left.pop(0) if len(left) > 1 else left[0])).start()

    def serve(connection: socket.socket, talk: Talk) -> None:
        with contextlib.suppress(OSError), connection:
            while asked := connection.recv(65536):
                talk(connection, asked)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in opened:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


def sending(data: bytes, *, then_closing: bool = False) -> Talk:
    def talk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(data)
        if then_closing:
            connection.shutdown(socket.SHUT_RDWR)

    return talk


def whole(body: bytes, head: bytes = HEAD) -> bytes:
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes, size: int) -> bytes:
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return (
        HEAD
        + b"transfer-encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks)
        + b"0\r\n\r\n"
    )


def test_one_connection_serves_call_after_call(servicer: TableServicer) -> None:
    seen: set[object] = set()
    with serving_http(servicer) as address, TeacherClient(address) as client:
        for _ in range(5):
            client.answer(SMALL)
            seen.add(tuple(client._calls._connections._idle))  # type: ignore[attr-defined]  # what it keeps
    assert len(seen) == 1
    assert len(servicer.calls) == 6


def test_threads_that_ask_together_have_a_connection_each_and_keep_them(servicer: TableServicer) -> None:
    together = threading.Barrier(4)
    with serving_http(servicer) as address, TeacherClient(address) as client:
        client.describe()
        servicer.faults = [lambda _: (together.wait(20), None)[1]] * 4
        threads = [threading.Thread(target=client.answer, args=(SMALL,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(client._calls._connections._idle) == 4  # type: ignore[attr-defined]  # as above


def test_a_connection_that_the_other_side_has_closed_meanwhile_is_no_failure() -> None:
    answered = threading.Event()

    def once(connection: socket.socket, _: bytes) -> None:
        connection.sendall(whole(DESCRIBED))
        answered.wait(20)
        connection.shutdown(socket.SHUT_RDWR)

    with talking(once, sending(whole(DESCRIBED))) as address, TeacherClient(address, max_attempts=1) as client:
        client.describe()
        answered.set()
        client.describe(include_tokens=True)
        assert client.retries == {}


def test_a_connection_that_has_been_idle_for_long_is_given_up(
    servicer: TableServicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_http(servicer) as address, TeacherClient(address) as client:
        client.answer(SMALL)
        (old,) = client._calls._connections._idle  # type: ignore[attr-defined]  # as above
        monkeypatch.setattr(http_connection, "_MAX_IDLE_SECONDS", 0.0)
        client.answer(SMALL)
        (new,) = client._calls._connections._idle  # type: ignore[attr-defined]  # as above
    assert new is not old


def test_an_answer_that_says_to_close_is_the_last_of_its_connection() -> None:
    head = HEAD.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
    with talking(sending(whole(DESCRIBED, head), then_closing=True)) as address, TeacherClient(address) as client:
        for include_tokens in (False, True):
            client.describe(include_tokens=include_tokens)
        assert client._calls._connections._idle == []  # type: ignore[attr-defined]  # as above


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_answer_that_a_proxy_sends_in_chunks_is_read(size: int) -> None:
    with talking(sending(chunked(DESCRIBED, size))) as address, TeacherClient(address) as client:
        assert client.describe().fingerprint == DESCRIPTION.fingerprint
        assert client.describe(include_tokens=True).fingerprint == DESCRIPTION.fingerprint


@pytest.mark.parametrize("kind", ["head", "body", "large body"])
def test_what_comes_drop_by_drop_is_waited_for_no_longer_than_the_call_may_take(kind: str) -> None:
    over = threading.Event()
    size = 2_000_000 if kind == "large body" else len(DESCRIBED)

    def drip(connection: socket.socket, _: bytes) -> None:
        head = HEAD + b"content-length: %d\r\n\r\n" % size
        connection.sendall(head[:20] if kind == "head" else head)
        while not over.wait(0.05):
            connection.sendall(b"x")

    with talking(drip) as address:
        try:
            with TeacherClient(address, timeout_seconds=0.6) as client:
                began = time.monotonic()
                with pytest.raises(TeacherTimeoutError, match="no answer within"):
                    client.describe()
                assert time.monotonic() - began < 10
        finally:
            over.set()


def test_what_nobody_reads_is_sent_for_no_longer_than_the_call_may_take() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections = Connections(HttpAddress.of(f"http://127.0.0.1:{listener.getsockname()[1]}"), None)
        # More than the buffers in between hold.
        asking = connections.response("POST", "/", bytes(64 * 2**20), {}, time.monotonic() + 0.4, Ongoing())
        with pytest.raises(TimeoutError), asking:
            pass
        connections.close()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", TeacherUnavailableError),
        (HEAD[:10], TeacherUnavailableError),
        (HEAD + b"content-length: 500\r\n\r\nabc", TeacherUnavailableError),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nab", TeacherUnavailableError),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", TeacherUnavailableError),
        (HEAD + b"x: " + b"y" * 100_000, TeacherUnavailableError),
        (HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcdef", TeacherUnavailableError),
        (whole(b"<html>", b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n"), TeacherInternalError),
        (whole(b"", b"HTTP/1.1 204 No Content\r\n"), TeacherInternalError),
        (whole(b"moved", b"HTTP/1.1 302 Found\r\nlocation: http://there\r\n"), TeacherInternalError),
        (whole(b"\xff\xff"), CodecError),
        (whole(DESCRIBED) * 2, TeacherUnavailableError),
        (whole(DESCRIBED) + b"more", TeacherUnavailableError),
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "no HTTP", "a long head", "two lengths", "a page",
         "no content", "elsewhere", "garbage", "two answers", "more than one"],
)  # fmt: skip
def test_what_is_no_answer_is_an_error_that_names_the_address(data: bytes, error: type[StillhouseError]) -> None:
    with talking(sending(data, then_closing=True)) as address, TeacherClient(address, max_attempts=1) as client:
        with pytest.raises(error) as raised:
            client.describe()
        assert error is CodecError or address in str(raised.value)


def test_more_is_announced_than_can_be_the_answer_and_none_of_it_is_read() -> None:
    huge = HEAD + b"content-length: %d\r\n\r\n" % 2**50
    with talking(sending(whole(DESCRIBED)), sending(huge)) as address:
        with TeacherClient(address) as described:
            teacher = described.describe()
        with TeacherClient(address, max_attempts=1) as client:
            client._descriptions[False] = teacher
            with pytest.raises(StreamError, match="announced"):
                client.answer(LARGE)


def test_an_answer_cut_off_is_asked_for_again(servicer: TableServicer) -> None:
    """The first connection ends in the middle of a payload; the next is whole."""
    with serving_http(servicer) as real, TeacherClient(real) as other:
        expected = other.answer(LARGE)
        host, _, port = real.removeprefix("http://").rpartition(":")

        def relay(connection: socket.socket, asked: bytes, limit: int | None) -> None:
            with socket.create_connection((host, int(port))) as behind:
                behind.sendall(asked)
                sent = 0
                while data := behind.recv(65536):
                    connection.sendall(data if limit is None else data[: limit - sent])
                    sent += len(data)
                    if limit is not None and sent >= limit:
                        connection.shutdown(socket.SHUT_RDWR)
                        return

        cut_off: Talk = lambda connection, asked: relay(connection, asked, 700_000)  # noqa: E731 - a talk
        passed_on: Talk = lambda connection, asked: relay(connection, asked, None)  # noqa: E731 - a talk
        with talking(cut_off, passed_on) as address, TeacherClient(address) as client:
            client._descriptions[False] = other.describe()
            answer = client.answer(LARGE)
            assert client.retries == {"TeacherUnavailableError": 1}
        assert answer.payloads[0].logits.equal(expected.payloads[0].logits)  # type: ignore[union-attr]  # dense
        assert expected.payloads[0].logits.equal(TABLE.repeat(120, 1))  # type: ignore[union-attr]  # dense


async def test_a_task_that_is_cancelled_gives_its_call_up() -> None:
    asked, gone = threading.Event(), threading.Event()

    def hang(connection: socket.socket, _: bytes) -> None:
        asked.set()
        while connection.recv(1000):
            pass
        gone.set()

    with talking(hang) as address:
        async with AsyncTeacherClient(address) as client:
            task = asyncio.create_task(client.describe())
            await until(asked.is_set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(gone.is_set)


async def test_calls_under_way_end_with_an_asyncio_client() -> None:
    asked = threading.Event()

    def hang(_: socket.socket, __: bytes) -> None:
        asked.set()

    with talking(hang) as address:
        client = AsyncTeacherClient(address)
        task = asyncio.create_task(client.describe())
        await until(asked.is_set)
        await client.close()
        with pytest.raises(Exception, match="is closed"):
            await task


def test_nobody_at_the_address_is_unavailable() -> None:
    with (
        TeacherClient("http://127.0.0.1:1", max_attempts=2) as client,
        pytest.raises(TeacherUnavailableError, match=r"http://127\.0\.0\.1:1"),
    ):
        client.describe()
    with (
        TeacherClient("http://nobody.invalid:8000", max_attempts=1) as client,
        pytest.raises(TeacherUnavailableError, match=r"nobody\.invalid"),
    ):
        client.describe()


def test_a_prefix_stands_before_each_path() -> None:
    asked: list[bytes] = []

    def note(connection: socket.socket, data: bytes) -> None:
        asked.append(data)
        connection.sendall(whole(DESCRIBED))

    with talking(note) as address, TeacherClient(f"{address}/team/teacher/", token="s3cret") as client:
        client.describe()
    assert asked[0].startswith(b"GET /team/teacher/v1/teacher?include_tokens=false HTTP/1.1\r\n")
    assert b"authorization: Bearer s3cret\r\n" in asked[0]
    assert f"host: {address.removeprefix('http://')}".encode() in asked[0]


@pytest.mark.parametrize("code", [b"100 Continue", b"103 Early Hints"])
def test_what_says_that_more_will_come_is_no_answer(code: bytes) -> None:
    first = b"HTTP/1.1 " + code + b"\r\nlink: there\r\n\r\n"

    def talk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(first)
        connection.sendall(first + whole(DESCRIBED))

    with talking(talk) as address, TeacherClient(address) as client:
        assert client.describe().fingerprint == DESCRIPTION.fingerprint
        assert client.describe(include_tokens=True).fingerprint == DESCRIPTION.fingerprint
