"""A table teacher at an address, and either client to ask it with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as rpc
from tests.integration.client.table_teacher import (
    Ask,
    TableServicer,
)


@pytest.fixture
def servicer() -> TableServicer:
    return TableServicer()


@pytest.fixture
def address(servicer: TableServicer) -> Iterator[str]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        rpc.add_TeacherServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


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
