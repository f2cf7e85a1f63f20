"""Threads may; a fork, another event loop and whoever comes after the end are told so instead of left waiting."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.codec import encode_payload
from stillhouse.errors import ConfigurationError
from tests.integration.client.http_table import serving_http
from tests.integration.client.table_teacher import LARGE, SMALL, TableServicer, about, serving


# Each of these over gRPC and over HTTP.
@pytest.fixture(params=["gRPC", "HTTP"])
def address(request: pytest.FixtureRequest, servicer: TableServicer) -> Iterator[str]:
    with (serving if request.param == "gRPC" else serving_http)(servicer) as address:
        yield address


ROOT = Path(__file__).resolve().parents[3]

FORK = """
import os, sys
from stillhouse.client import TeacherClient
from stillhouse.errors import ConfigurationError
client = TeacherClient(sys.argv[1])
print(client.logits([[1, 2]])[0].num_positions, flush=True)
pid = os.fork()
if pid == 0:
    try:
        client.logits([[1, 2]])
    except ConfigurationError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(client.logits([[1, 2]])[0].num_positions, flush=True)
"""


def test_threads_share_a_client_in_every_kind_of_call(servicer: TableServicer, address: str) -> None:
    with TeacherClient(address) as client, ThreadPoolExecutor(8) as pool:
        small, large = (encode_payload(client.answer(request).payloads[0]) for request in (SMALL, LARGE))
        found = list(pool.map(lambda index: client.answer(LARGE if index % 4 == 0 else SMALL), range(40)))
    for index, answer in enumerate(found):
        assert encode_payload(answer.payloads[0]) == (large if index % 4 == 0 else small)
    assert servicer.calls.count("GetTeacher") == 1


def test_threads_that_begin_together_describe_the_teacher_once(servicer: TableServicer, address: str) -> None:
    with TeacherClient(address) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.describe(), range(16)))
    assert servicer.calls == ["GetTeacher"]


async def test_tasks_that_begin_together_describe_the_teacher_once(servicer: TableServicer, address: str) -> None:
    async with AsyncTeacherClient(address) as client:
        await asyncio.gather(*(client.logits([[token]]) for token in range(8)))
    assert servicer.calls.count("GetTeacher") == 1


def test_a_fork_is_told_to_open_its_own(address: str) -> None:
    command = [sys.executable, "-c", FORK, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    first, child, last = done.stdout.splitlines()
    assert (first, last) == ("2", "2")
    assert "is a fork of it: open clients in the processes that use them" in child


def test_another_event_loop_is_told_to_open_its_own(address: str) -> None:
    client = AsyncTeacherClient(address)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(client.describe())
        with pytest.raises(ConfigurationError, match="belongs to the event loop"):
            asyncio.run(client.logits([[1]]))
        loop.run_until_complete(client.close())
    finally:
        loop.close()


def test_a_closed_client_says_so(address: str) -> None:
    client = TeacherClient(address)
    client.close()
    with pytest.raises(ConfigurationError, match=r"TeacherClient\('.*'\) is closed"):
        client.describe()

    async def run() -> None:
        client = AsyncTeacherClient(address)
        await client.close()
        await client.describe()

    with pytest.raises(ConfigurationError, match="is closed"):
        asyncio.run(run())


def test_a_call_under_way_ends_with_its_client_and_is_not_tried_again(
    address: str, servicer: TableServicer, caplog: pytest.LogCaptureFixture
) -> None:
    called, over = threading.Event(), threading.Event()

    def hang(context: grpc.ServicerContext) -> None:
        del context
        called.set()
        over.wait(30)

    servicer.faults.append(hang)
    client = TeacherClient(address, timeout_seconds=30)
    try:
        with caplog.at_level(logging.WARNING, "stillhouse.client"), ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.describe)
            assert called.wait(30)
            client.close()
            with pytest.raises(ConfigurationError, match="is closed"):
                asked.result(30)
    finally:
        over.set()
    assert caplog.records == []
    assert servicer.calls == ["GetTeacher"]


@pytest.mark.parametrize(
    ("address_", "options", "warned"),
    [
        ("gpu0:8001", {"token": "s3cret"}, True),
        ("gpu0:8001", {}, False),
        ("127.0.0.1:8001", {"token": "s3cret"}, False),
        ("http://gpu0:8000", {"token": "s3cret"}, True),
        ("http://127.0.0.1:8000", {"token": "s3cret"}, False),
        ("https://gpu0:8000", {"token": "s3cret"}, False),
        ("gpu0:8001", {"token": "s3cret", "credentials": grpc.ssl_channel_credentials()}, False),
    ],
)
def test_a_token_that_leaves_the_machine_in_the_clear_is_warned_of_without_being_shown(
    caplog: pytest.LogCaptureFixture, address_: str, options: dict[str, object], warned: bool
) -> None:
    with caplog.at_level(logging.WARNING, "stillhouse.client"):
        TeacherClient(address_, **options).close()  # type: ignore[arg-type]  # any of the options
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("token", ["", " x", "a\nb", "ä"])
def test_a_token_that_no_header_holds_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(ConfigurationError, match="token must be") as refused:
        TeacherClient("127.0.0.1:1", token=token)
    assert repr(token) not in str(refused.value)


def test_what_was_tried_again_is_counted(servicer: TableServicer, address: str) -> None:
    from stillhouse.errors import TeacherUnavailableError
    from tests.integration.client.table_teacher import fail

    servicer.faults = [fail(TeacherUnavailableError("loading"))] * 2
    with TeacherClient(address) as client:
        client.answer(about((1,)))
        assert client.retries == {"TeacherUnavailableError": 2}
