"""What a client shows and trusts when it speaks TLS with a teacher, read from PEM files. Knows nothing of calls."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from stillhouse.errors import ConfigurationError
from stillhouse.http_address import is_http

SYSTEM_AUTHORITIES = "system"
"""Instead of a file: the authorities that this machine trusts."""


Credentials = grpc.ChannelCredentials | ssl.SSLContext
"""Of a gRPC channel, or of HTTP connections."""

_File = str | Path | None


def credentials_for(address: str, ca: _File = None, certificate: _File = None, key: _File = None) -> Credentials | None:
    """Return credentials for a `TeacherClient` of this address, of gRPC or of HTTP; None where nothing is named.

    The files are those of `channel_credentials`, and so are the errors. Without any, gRPC is spoken in the clear, and
    an https address is held to what this machine trusts.
    """
    return tls_context(ca, certificate, key) if is_http(address) else channel_credentials(ca, certificate, key)


def channel_credentials(
    ca: _File = None, certificate: _File = None, key: _File = None
) -> grpc.ChannelCredentials | None:
    """Return credentials for a `TeacherClient` over gRPC; None, for a connection in the clear, where nothing is named.

    Args:
        ca: PEM file of the authority that signed the teacher's certificate; `system` is what this machine trusts.
        certificate: PEM file of this client's own certificate, where the teacher asks for one (mutual TLS).
        key: PEM file of its private key.

    Raises:
        ConfigurationError: a file that cannot be read or used, or one of the pair without the other, or of another.
    """
    # gRPC says nothing of files that it cannot use until a call fails, and then not which: Python's own TLS does.
    if tls_context(ca, certificate, key) is None or ca is None:
        return None
    roots = None if str(ca) == SYSTEM_AUTHORITIES else _read("the authority", ca, "CERTIFICATE")
    if certificate is None or key is None:
        return grpc.ssl_channel_credentials(roots)
    pair = _read("the key", key, "PRIVATE KEY"), _read("the certificate", certificate, "CERTIFICATE")
    return grpc.ssl_channel_credentials(roots, *pair)


def tls_context(ca: _File = None, certificate: _File = None, key: _File = None) -> ssl.SSLContext | None:
    """Return what `channel_credentials` does, for a `TeacherClient` over HTTP."""
    if (certificate is None) != (key is None):
        raise ConfigurationError("a client's certificate and its key are given together, or neither")
    if ca is None:
        if certificate is not None:
            raise ConfigurationError(
                "a client's certificate is given without the authority that the teacher's is checked against: name "
                f"its PEM file, or {SYSTEM_AUTHORITIES!r}"
            )
        return None
    if str(ca) == SYSTEM_AUTHORITIES:
        context = ssl.create_default_context()
    else:
        _read("the authority", ca, "CERTIFICATE")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with _naming(f"the authority {ca}"):
            context.load_verify_locations(cafile=ca)
    if certificate is not None and key is not None:
        _read("the key", key, "PRIVATE KEY")
        _read("the certificate", certificate, "CERTIFICATE")
        with _naming(f"the certificate {certificate} with the key {key}"):
            # An encrypted key would otherwise be asked for on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: b"")
    return context


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{what} cannot be used (is it whole, unencrypted and its own?): {reason}") from None


def _read(what: str, path: str | Path, kind: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror or error}") from None
    if kind.encode() + b"-----" not in data:
        raise ConfigurationError(f"{what} {path} holds no {kind.lower()} in PEM form")
    return data
