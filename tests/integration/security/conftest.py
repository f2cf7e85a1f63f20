"""Certificates made on the spot: an authority of the service, one of its clients, and one that nobody here trusts."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import trustme

from teacher_service.service import TeacherService

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]


@dataclass(frozen=True)
class Pem:
    """One side's certificate and key."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_bytes(self.certificate)
        key.write_bytes(self.key)
        key.chmod(0o600)
        return certificate, key


def issue(authority: trustme.CA, *names: str, until: datetime | None = None) -> Pem:
    leaf = authority.issue_cert(*names, not_after=until, not_before=until and until - timedelta(days=1))
    return Pem(b"".join(blob.bytes() for blob in leaf.cert_chain_pems), leaf.private_key_pem.bytes())


def pem_of(authority: trustme.CA) -> bytes:
    return authority.cert_pem.bytes()


@dataclass(frozen=True)
class Authorities:
    """Who signs what."""

    service: trustme.CA
    clients: trustme.CA
    stranger: trustme.CA

    def ssl_context(self, client: Pem | None, folder: Path) -> ssl.SSLContext:
        """As an HTTP client uses it."""
        context = ssl.create_default_context(cadata=pem_of(self.service).decode())
        if client is not None:
            context.load_cert_chain(*client.write(folder, "client"))
        return context

    def channel_credentials(self, client: Pem | None) -> grpc.ChannelCredentials:
        """As a gRPC client uses it."""
        key, certificate = (None, None) if client is None else (client.key, client.certificate)
        return grpc.ssl_channel_credentials(pem_of(self.service), key, certificate)


@pytest.fixture(scope="session")
def authorities() -> Authorities:
    return Authorities(trustme.CA(), trustme.CA(), trustme.CA())


@pytest.fixture(scope="session")
def server_pem(authorities: Authorities) -> Pem:
    return issue(authorities.service, "localhost", "127.0.0.1")


@pytest.fixture(scope="session")
def client_pem(authorities: Authorities) -> Pem:
    return issue(authorities.clients, "trainer.example")


@pytest.fixture(scope="session")
def foreign_pem(authorities: Authorities) -> Pem:
    return issue(authorities.stranger, "trainer.example")


@pytest.fixture(scope="session")
def expired_pem(authorities: Authorities) -> Pem:
    return issue(authorities.clients, "trainer.example", until=datetime.now(UTC) - timedelta(hours=1))


@pytest.fixture
def tls_settings(tmp_path: Path, server_pem: Pem) -> dict[str, object]:
    """Settings of a service that speaks TLS, its files in a folder of the test's own."""
    certificate, key = server_pem.write(tmp_path, "server")
    return {"tls_certificate": certificate, "tls_key": key, "plain_port": 0}


@pytest.fixture
def mutual_tls_settings(tls_settings: dict[str, object], tmp_path: Path, authorities: Authorities) -> dict[str, object]:
    """The same, for a service that asks its clients for a certificate too."""
    (tmp_path / "clients.crt").write_bytes(pem_of(authorities.clients))
    return {**tls_settings, "tls_client_ca": tmp_path / "clients.crt"}
