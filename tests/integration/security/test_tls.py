"""TLS on both doors: which files are taken, who gets in, and certificates that change while the service runs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from prometheus_client import CollectorRegistry

from stillhouse.client import AsyncTeacherClient
from stillhouse.errors import ConfigurationError
from teacher_service import tls
from teacher_service.metrics import Metrics
from teacher_service.service import TeacherService
from teacher_service.settings import TeacherSettings, load_settings
from teacher_service.tls import Tls
from tests.integration.security.conftest import Authorities, Pem, ServeTeacher, issue, pem_of
from tests.waiting import until


def read(**settings: object) -> Tls:
    return Tls(TeacherSettings(backend="fixture", **settings), Metrics())  # type: ignore[arg-type]  # a test's shorthand


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


async def describe(service: TeacherService, credentials: grpc.ChannelCredentials) -> str:
    address = f"127.0.0.1:{service.grpc_port}"
    async with AsyncTeacherClient(address, credentials=credentials, max_attempts=1, timeout_seconds=20) as client:
        return (await client.describe()).model


async def status_of(service: TeacherService, context: ssl.SSLContext) -> int:
    async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{service.http_port}", verify=context) as http:
        return (await http.get("/v1/teacher")).status_code


async def test_both_doors_speak_tls(
    serve_teacher: ServeTeacher, tls_settings: dict[str, object], authorities: Authorities, tmp_path: Path
) -> None:
    async with serve_teacher(**tls_settings) as service:
        assert await describe(service, authorities.channel_credentials(None)) == "fixture"
        assert await status_of(service, authorities.ssl_context(None, tmp_path)) == 200


async def test_nothing_older_than_tls_1_2_is_spoken(
    serve_teacher: ServeTeacher, tls_settings: dict[str, object], authorities: Authorities, tmp_path: Path
) -> None:
    async with serve_teacher(**tls_settings) as service:
        for port in (service.grpc_port, service.http_port):
            old = authorities.ssl_context(None, tmp_path)
            old.set_alpn_protocols(["h2", "http/1.1"])
            old.set_ciphers("DEFAULT:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await asyncio.open_connection("127.0.0.1", port, ssl=old)
            new = authorities.ssl_context(None, tmp_path)
            new.set_alpn_protocols(["h2", "http/1.1"])
            new.minimum_version = new.maximum_version = ssl.TLSVersion.TLSv1_2
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=new)
            writer.close()


async def test_a_clients_certificate_of_the_named_authority_is_taken(
    serve_teacher: ServeTeacher,
    mutual_tls_settings: dict[str, object],
    authorities: Authorities,
    client_pem: Pem,
    tmp_path: Path,
) -> None:
    async with serve_teacher(**mutual_tls_settings) as service:
        assert await describe(service, authorities.channel_credentials(client_pem)) == "fixture"
        assert await status_of(service, authorities.ssl_context(client_pem, tmp_path)) == 200


async def test_a_renewed_certificate_is_served_to_the_next_connection(
    serve_teacher: ServeTeacher,
    mutual_tls_settings: dict[str, object],
    tmp_path: Path,
    client_pem: Pem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.05)
    other = Authorities(trustme.CA(), trustme.CA(), trustme.CA())
    newcomer = issue(other.clients, "newcomer.example")
    async with serve_teacher(**mutual_tls_settings) as service:
        registry = service.metrics.registry
        (tmp_path / "server.key").write_bytes(b"half a k")
        await until(lambda: value(registry, "teacher_certificate_reloads_total", result="refused") == 1)
        (tmp_path / "clients.crt").write_bytes(pem_of(other.clients))
        issue(other.service, "127.0.0.1").write(tmp_path, "server")
        await until(lambda: value(registry, "teacher_certificate_reloads_total", result="used") == 1)
        assert await describe(service, other.channel_credentials(newcomer)) == "fixture"
        assert await status_of(service, other.ssl_context(newcomer, tmp_path)) == 200
        # The authority of before is trusted no more.
        with pytest.raises(httpx.TransportError):
            await status_of(service, other.ssl_context(client_pem, tmp_path))
        async with grpc.aio.secure_channel(
            f"127.0.0.1:{service.grpc_port}", other.channel_credentials(client_pem)
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await channel.unary_unary("/any/Thing", bytes, bytes)(b"", timeout=20)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_of_before_brings_nobody_in_whose_authority_has_gone(
    serve_teacher: ServeTeacher,
    mutual_tls_settings: dict[str, object],
    authorities: Authorities,
    client_pem: Pem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: ssl.TLSVersion,
) -> None:
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.05)
    context = authorities.ssl_context(client_pem, tmp_path)
    context.minimum_version = context.maximum_version = version
    async with serve_teacher(**mutual_tls_settings) as service:

        def call(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
            address = ("127.0.0.1", service.http_port)
            with (
                socket.create_connection(address, timeout=10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as caller,
            ):
                caller.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
                # With TLS 1.3 a client hears of its refusal when it reads.
                if not caller.recv(4096):
                    raise ConnectionResetError
                return caller.session

        session = await asyncio.to_thread(call, None)
        assert await asyncio.to_thread(call, session)  # taken up while nothing has changed
        (tmp_path / "clients.crt").write_bytes(pem_of(trustme.CA()))
        await until(lambda: value(service.metrics.registry, "teacher_certificate_reloads_total", result="used") == 1)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(call, session)


def test_files_that_do_not_fit_are_refused_with_their_names(
    tls_settings: dict[str, object], tmp_path: Path, foreign_pem: Pem, server_pem: Pem
) -> None:
    _, foreign_key = foreign_pem.write(tmp_path, "foreign")
    locked = tmp_path / "locked.key"
    private = serialization.load_pem_private_key(server_pem.key, None)
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    for wrong, message in (
        ({"tls_key": tmp_path / "none.key"}, r"tls_key: .*none\.key cannot be read: No such file"),
        ({"tls_certificate": tmp_path}, "tls_certificate: .* cannot be read: Is a directory"),
        ({"tls_key": foreign_key}, r"tls_key: .*foreign\.key does not belong to the certificate in .*server\.crt"),
        ({"tls_key": locked}, r"tls_key: .*locked\.key is encrypted"),
        ({"tls_key": tls_settings["tls_certificate"]}, r"tls_key: .*server\.crt holds no private key"),
        ({"tls_certificate": tls_settings["tls_key"]}, r"tls_certificate: .*server\.key holds no certificate"),
        ({"tls_client_ca": foreign_key}, r"tls_client_ca: .*foreign\.key holds no certificate"),
    ):
        with pytest.raises(ConfigurationError, match=message) as refusal:
            read(**{**tls_settings, **wrong})
        assert "BEGIN" not in str(refusal.value)


def test_half_of_the_settings_is_refused(tmp_path: Path) -> None:
    for given, missing in (
        ("tls_certificate", "tls_key"),
        ("tls_key", "tls_certificate"),
        ("tls_client_ca", "tls_certificate"),
    ):
        with pytest.raises(ConfigurationError, match=f"{given} is set and {missing} is not"):
            load_settings({"backend": "fixture", given: str(tmp_path)}, {})


def test_ports_that_collide_are_refused_before_anything_loads() -> None:
    with pytest.raises(ConfigurationError, match="http_port, grpc_port and plain_port must differ"):
        load_settings({"backend": "fixture", "http_port": "8001"}, {})


def test_an_expired_certificate_is_served_with_a_warning(
    authorities: Authorities, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = datetime.now(UTC) - timedelta(hours=1)
    certificate, key = issue(authorities.service, "127.0.0.1", until=ended).write(tmp_path, "old")
    metrics = Metrics()
    Tls(TeacherSettings(backend="fixture", tls_certificate=certificate, tls_key=key), metrics)
    assert "certificate_not_valid_now" in capsys.readouterr().out
    assert value(metrics.registry, "teacher_certificate_expiry_timestamp_seconds") == pytest.approx(
        ended.timestamp(), abs=1
    )
