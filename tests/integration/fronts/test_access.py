"""Tokens, certificates and bounds of a service with fronts: each front lets callers in by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
import pytest
import trustme

from stillhouse.client import AsyncTeacherClient
from stillhouse.errors import OverloadedError, PermissionDeniedError, TeacherUnavailableError, UnauthenticatedError
from teacher_service.service import TeacherService
from tests.integration.counting_backend import CountingBackend
from tests.integration.raw_calls import ask, value
from tests.waiting import until

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

FIRST, SECOND, SCRAPER = "a" * 20, "b" * 20, "c" * 20


def client_of(
    service: TeacherService, token: str | None = None, credentials: grpc.ChannelCredentials | None = None
) -> AsyncTeacherClient:
    return AsyncTeacherClient(
        f"localhost:{service.grpc_port}", token=token, credentials=credentials, max_attempts=1, timeout_seconds=20
    )


async def is_let_in(service: TeacherService, token: str | None) -> bool:
    async with client_of(service, token) as client:
        try:
            await client.describe()
        except UnauthenticatedError:
            return False
        return True


async def test_each_front_asks_for_a_token(serve_teacher: ServeTeacher, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"one {FIRST}\nscraper {SCRAPER} metrics\n")
    async with serve_teacher(tokens_file=file, front_processes=2) as service:
        for _ in range(6):
            assert await is_let_in(service, FIRST)
            assert not await is_let_in(service, None)
            assert not await is_let_in(service, SECOND)
            async with client_of(service, SCRAPER) as client:
                with pytest.raises(PermissionDeniedError):
                    await client.describe()
        await service.metrics.refresh()
        assert value(service, "teacher_refused_total", error="UnauthenticatedError") == 12
        file.write_text(f"one {SECOND}\n")
        async with asyncio.timeout(15):
            while any([await is_let_in(service, FIRST) for _ in range(6)]):  # noqa: ASYNC110 - a state, not an event
                await asyncio.sleep(0.1)
        assert await is_let_in(service, SECOND)
        await until(lambda: value(service, "teacher_token_reloads_total", result="used") == 1)


async def test_what_one_caller_has_computed_at_once_is_bounded_over_all_fronts(
    serve_teacher: ServeTeacher, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"one {FIRST}\ntwo {SECOND}\n")
    backend = CountingBackend()
    backend.gate.clear()
    settings = {"tokens_file": file, "front_processes": 2, "max_requests_per_token": 2}
    async with serve_teacher(None, backend, **settings) as service:
        clients = [client_of(service, FIRST) for _ in range(8)]
        tasks = [asyncio.create_task(client.answer(ask((n,)))) for n, client in enumerate(clients)]
        await until(lambda: sum(task.done() for task in tasks) == 6)
        other = client_of(service, SECOND)
        last = asyncio.create_task(other.answer(ask((50,))))
        await until(lambda: value(service, "teacher_queue_size") == 3)
        backend.gate.set()
        await last
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, OverloadedError) for result in results) == 6
        for client in (*clients, other):
            await client.close()


async def test_each_front_speaks_tls(serve_teacher: ServeTeacher, tmp_path: Path) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    leaf, mine = authority.issue_cert("localhost"), clients.issue_cert("me")
    paths = {name: tmp_path / name for name in ("tls_certificate", "tls_key", "tls_client_ca")}
    leaf.cert_chain_pems[0].write_to_path(str(paths["tls_certificate"]))
    leaf.private_key_pem.write_to_path(str(paths["tls_key"]))
    clients.cert_pem.write_to_path(str(paths["tls_client_ca"]))
    trusted = authority.cert_pem.bytes()
    good = grpc.ssl_channel_credentials(trusted, mine.private_key_pem.bytes(), mine.cert_chain_pems[0].bytes())
    async with serve_teacher(front_processes=2, plain_port=0, **paths) as service:
        for _ in range(4):
            async with client_of(service, credentials=good) as client:
                assert (await client.describe()).model == "fixture"
            for bad in (grpc.ssl_channel_credentials(trusted), None):
                async with client_of(service, credentials=bad) as client:
                    with pytest.raises(TeacherUnavailableError):
                        await client.describe()
        renewed = authority.issue_cert("localhost")
        renewed.private_key_pem.write_to_path(str(paths["tls_key"]))
        renewed.cert_chain_pems[0].write_to_path(str(paths["tls_certificate"]))
        await until(lambda: value(service, "teacher_certificate_reloads_total", result="used") == 1)
        async with client_of(service, credentials=good) as client:
            assert (await client.describe()).model == "fixture"
