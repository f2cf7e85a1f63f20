"""A table teacher at an address, and either client to ask it with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from stillhouse import cutting
from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from tests.integration.client.http_table import serving_http
from tests.integration.client.table_teacher import (
    Ask,
    TableServicer,
    serving,
)


@pytest.fixture(autouse=True)
def _more_than_a_megabyte_is_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a table of fifty ids has an answer that is one: how large it is changes nothing in how it is read."""
    monkeypatch.setattr(cutting, "ONE_MESSAGE_BYTES", 2**20)


@pytest.fixture
def servicer() -> TableServicer:
    return TableServicer()


@pytest.fixture
def address(servicer: TableServicer) -> Iterator[str]:
    with serving(servicer) as address:
        yield address


@pytest.fixture
def http_address(servicer: TableServicer) -> Iterator[str]:
    with serving_http(servicer) as address:
        yield address


@pytest.fixture(params=["sync", "asyncio"])
def ask_grpc(request: pytest.FixtureRequest, address: str) -> Ask:
    return _asking(address, is_sync=request.param == "sync")


@pytest.fixture(params=["sync", "asyncio"])
def ask_http(request: pytest.FixtureRequest, http_address: str) -> Ask:
    return _asking(http_address, is_sync=request.param == "sync")


@pytest.fixture(params=["sync over gRPC", "asyncio over gRPC", "sync over HTTP", "asyncio over HTTP"])
def ask(request: pytest.FixtureRequest, address: str, http_address: str) -> Ask:
    kind, _, way = request.param.partition(" over ")
    return _asking(address if way == "gRPC" else http_address, is_sync=kind == "sync")


def _asking(address: str, *, is_sync: bool) -> Ask:
    def ask_sync(request: LogitsRequest, **options: Any) -> Answer:
        with TeacherClient(address, **options) as client:
            return client.answer(request)

    def ask_asyncio(request: LogitsRequest, **options: Any) -> Answer:
        async def run() -> Answer:
            async with AsyncTeacherClient(address, **options) as client:
                return await client.answer(request)

        return asyncio.run(run())

    return ask_sync if is_sync else ask_asyncio
