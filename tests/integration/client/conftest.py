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


@pytest.fixture(params=["sync", "asyncio"])
def ask(request: pytest.FixtureRequest, address: str) -> Ask:
    def ask_sync(request: LogitsRequest, **options: Any) -> Answer:
        with TeacherClient(address, **options) as client:
            return client.answer(request)

    def ask_asyncio(request: LogitsRequest, **options: Any) -> Answer:
        async def run() -> Answer:
            async with AsyncTeacherClient(address, **options) as client:
                return await client.answer(request)

        return asyncio.run(run())

    return ask_sync if request.param == "sync" else ask_asyncio
