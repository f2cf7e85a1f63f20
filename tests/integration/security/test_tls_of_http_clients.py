"""A `TeacherClient` of an https address: whom it trusts, what it shows, and that nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.codec import encode_payload
from stillhouse.credentials import credentials_for, tls_context
from stillhouse.errors import ConfigurationError, TeacherUnavailableError
from stillhouse.request import All, LogitsRequest, Sequence
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.service import TeacherService
from tests.integration.security.conftest import Authorities, Pem, ServeTeacher, pem_of


@pytest.fixture
def ca(authorities: Authorities, tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_bytes(pem_of(authorities.service))
    return path


def address_of(service: TeacherService, host: str = "127.0.0.1") -> str:
    return f"https://{host}:{service.http_port}"


async def test_answers_small_and_large_come_whole(
    serve_teacher: ServeTeacher, tls_settings: dict[str, object], authorities: Authorities, ca: Path
) -> None:
    async with serve_teacher(None, FixtureBackend(500), **tls_settings) as service:
        over_grpc = authorities.channel_credentials(None)
        async with (
            AsyncTeacherClient(address_of(service), credentials=tls_context(ca)) as ours,
            AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}", credentials=over_grpc) as theirs,
        ):
            assert await ours.describe(include_tokens=True) == await theirs.describe(include_tokens=True)
            for lengths in ((2,), (700, 900, 1, 800)):
                rows = tuple(Sequence(tuple(place % 60 for place in range(n)), (), All()) for n in lengths)
                found = await ours.answer(LogitsRequest(rows))
                expected = await theirs.answer(LogitsRequest(rows))
                assert list(map(encode_payload, found.payloads)) == list(map(encode_payload, expected.payloads))
            assert (await ours.output_head()).weight.equal((await theirs.output_head()).weight)


@pytest.mark.parametrize("trusted", ["nobody's", "a stranger's"])
async def test_a_service_that_is_not_trusted_is_not_spoken_to(
    serve_teacher: ServeTeacher, tls_settings: dict[str, object], authorities: Authorities, tmp_path: Path, trusted: str
) -> None:
    (tmp_path / "other.crt").write_bytes(pem_of(authorities.stranger))
    context = None if trusted == "nobody's" else tls_context(tmp_path / "other.crt")
    async with (
        serve_teacher(**tls_settings) as service,
        AsyncTeacherClient(address_of(service), credentials=context, max_attempts=1) as client,
    ):
        with pytest.raises(TeacherUnavailableError, match="certificate verify failed"):
            await client.describe()


async def test_a_certificate_is_shown_where_one_is_asked_for(
    serve_teacher: ServeTeacher, mutual_tls_settings: dict[str, object], client_pem: Pem, ca: Path, tmp_path: Path
) -> None:
    certificate, key = client_pem.write(tmp_path, "trainer")
    async with serve_teacher(**mutual_tls_settings) as service:
        address = address_of(service)
        async with AsyncTeacherClient(address, credentials=credentials_for(address, ca, certificate, key)) as client:
            assert (await client.describe()).model == "fixture"
        async with AsyncTeacherClient(address, credentials=credentials_for(address, ca), max_attempts=1) as client:
            with pytest.raises(TeacherUnavailableError):
                await client.describe()


async def test_plain_http_at_the_port_of_tls_is_unavailable(
    serve_teacher: ServeTeacher, tls_settings: dict[str, object]
) -> None:
    async with (
        serve_teacher(**tls_settings) as service,
        AsyncTeacherClient(f"http://127.0.0.1:{service.http_port}", max_attempts=1) as client,
    ):
        with pytest.raises(TeacherUnavailableError):
            await client.describe()


def test_credentials_are_of_the_addresses_kind(ca: Path) -> None:
    assert isinstance(credentials_for("gpu0:8001", ca), grpc.ChannelCredentials)
    for address, given, message in (
        ("http://gpu0:8000", tls_context(ca), "say https://"),
        ("https://gpu0:8000", credentials_for("gpu0:8001", ca), r"must be an ssl\.SSLContext"),
        ("gpu0:8001", credentials_for("https://gpu0:8000", ca), "must be of gRPC"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            TeacherClient(address, credentials=given)
    assert credentials_for("https://gpu0:8000") is None
