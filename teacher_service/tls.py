"""Certificates: read, checked before anything listens, and read again when they change.

Both doors serve the same certificate and ask for the same clients' authority. TLS 1.2 is the oldest version. Knows
nothing of tokens: where both are set, a caller needs both.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from stillhouse.errors import ConfigurationError
from teacher_service.metrics import Metrics
from teacher_service.settings import TeacherSettings
from teacher_service.watched_files import read_watched_file

CHECK_SECONDS = 1.0

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Certificates:
    """What the files held at one time, checked: the chain, its key and, with mutual TLS, the clients' authority."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    valid_from: datetime
    valid_until: datetime

    @property
    def is_valid(self) -> bool:
        """Whether the certificate is within its time now."""
        return self.valid_from <= datetime.now(UTC) <= self.valid_until

    def grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return the same for gRPC."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.client_ca)


class Tls:
    """The certificates in use, as both doors take them; for one event loop."""

    def __init__(self, settings: TeacherSettings, metrics: Metrics) -> None:
        """Read and check the files that the settings name.

        Raises:
            ConfigurationError: one that is missing, or that does not fit the others.
        """
        self._settings = settings
        self._metrics = metrics
        self._current, self._context = self._read()
        self._given_to_grpc = self._current
        self._note()

    def http_context(self) -> ssl.SSLContext:
        """Return the context to listen with; each connection takes the certificates of its own time."""
        return _LatestContext(lambda: self._context)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return the credentials to listen with; each handshake takes the certificates of its own time."""

        def latest() -> grpc.ServerCertificateConfiguration | None:
            current = self._current
            if current is self._given_to_grpc:
                return None
            self._given_to_grpc = current
            return current.grpc_configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._current.grpc_configuration(),
            latest,  # type: ignore[arg-type]  # None is "as before", which the stubs do not know
            require_client_authentication=self._current.client_ca is not None,
        )

    async def watch(self) -> None:
        """Look at the files every second, until cancelled; what cannot be used changes nothing but the log."""
        refused = ""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                found, context = await asyncio.to_thread(self._read)
            except ConfigurationError as error:
                if str(error) != refused:
                    refused = str(error)
                    self._metrics.certificate_reloads.labels("refused").inc()
                    logger.warning("certificates_kept", reason=refused)
                continue
            refused = ""
            if found != self._current:
                self._current, self._context = found, context
                self._metrics.certificate_reloads.labels("used").inc()
                logger.info("certificates_reloaded", valid_until=found.valid_until.isoformat())
                self._note()

    def _note(self) -> None:
        self._metrics.certificate_expiry.set(self._current.valid_until.timestamp())
        if not self._current.is_valid:
            logger.warning(
                "certificate_not_valid_now",
                valid_from=self._current.valid_from.isoformat(),
                valid_until=self._current.valid_until.isoformat(),
                remedy="renew it: clients refuse it",
            )

    def _read(self) -> tuple[Certificates, ssl.SSLContext]:
        return read_certificates(self._settings), self._make_context()

    def _make_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        certificate, key = self._settings.tls_certificate, self._settings.tls_key
        assert certificate is not None  # noqa: S101 - whoever makes this has seen to it
        try:
            context.load_cert_chain(certificate, key, password=lambda: b"")
            if self._settings.tls_client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self._settings.tls_client_ca)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"tls_certificate: {certificate} cannot be used for TLS: {error}") from None
        return context


class _LatestContext(ssl.SSLContext):
    """Stands for whichever context is in use when a connection begins.

    Whole contexts change, as they do in gRPC: one context that was given other certificates would go on taking up the
    TLS sessions of before, and so let in clients whose authority is trusted no more.
    """

    def __new__(cls, _latest: Callable[[], ssl.SSLContext]) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, latest: Callable[[], ssl.SSLContext]) -> None:
        self._latest = latest

    def wrap_bio(self, *args: Any, **settings: Any) -> ssl.SSLObject:
        """Begin a connection, as asyncio does for each."""
        return self._latest().wrap_bio(*args, **settings)


def read_certificates(settings: TeacherSettings) -> Certificates:
    """Return what the files hold now.

    Raises:
        ConfigurationError: a file that is missing, that is no PEM, or a key that is encrypted or another's.
    """
    assert settings.tls_certificate is not None  # noqa: S101 - whoever asks has seen to it,
    assert settings.tls_key is not None  # noqa: S101 - and the settings to this
    chain = read_watched_file("tls_certificate", settings.tls_certificate)
    key = read_watched_file("tls_key", settings.tls_key)
    certificate = _certificates("tls_certificate", settings.tls_certificate, chain)[0]
    try:
        private = serialization.load_pem_private_key(key, None)
    except TypeError:
        raise ConfigurationError(
            f"tls_key: {settings.tls_key} is encrypted, and nobody is there to type its password: write it without "
            "one (`openssl pkey -in KEY -out PLAIN`) where this service alone can read it"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"tls_key: {settings.tls_key} holds no private key in PEM form") from error
    if private.public_key() != certificate.public_key():
        raise ConfigurationError(
            f"tls_key: {settings.tls_key} does not belong to the certificate in {settings.tls_certificate}; "
            "name the key that the certificate was made for"
        )
    client_ca = None
    if settings.tls_client_ca is not None:
        client_ca = read_watched_file("tls_client_ca", settings.tls_client_ca)
        _certificates("tls_client_ca", settings.tls_client_ca, client_ca)
    return Certificates(chain, key, client_ca, certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _certificates(setting: str, path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigurationError(f"{setting}: {path} holds no certificate in PEM form") from error
