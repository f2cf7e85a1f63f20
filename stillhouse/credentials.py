"""What a client shows and trusts when it speaks TLS with a teacher, read from PEM files. Knows nothing of calls."""

from __future__ import annotations

from pathlib import Path

import grpc

from stillhouse.errors import ConfigurationError

SYSTEM_AUTHORITIES = "system"
"""Instead of a file: the authorities that this machine trusts."""


def channel_credentials(
    ca: str | Path | None = None, certificate: str | Path | None = None, key: str | Path | None = None
) -> grpc.ChannelCredentials | None:
    """Return credentials for `TeacherClient`; None, for a connection in the clear, where nothing is named.

    Args:
        ca: PEM file of the authority that signed the teacher's certificate; `system` is what this machine trusts.
        certificate: PEM file of this client's own certificate, where the teacher asks for one (mutual TLS).
        key: PEM file of its private key.

    Raises:
        ConfigurationError: a file that cannot be read, or one of the pair without the other.
    """
    if (certificate is None) != (key is None):
        raise ConfigurationError("a client's certificate and its key are given together, or neither")
    if ca is None:
        if certificate is not None:
            raise ConfigurationError(
                "a client's certificate is given without the authority that the teacher's is checked against: name "
                f"its PEM file, or {SYSTEM_AUTHORITIES!r}"
            )
        return None
    roots = None if str(ca) == SYSTEM_AUTHORITIES else _read("the authority", ca, "CERTIFICATE")
    if certificate is None or key is None:
        return grpc.ssl_channel_credentials(roots)
    return grpc.ssl_channel_credentials(
        roots, _read("the key", key, "PRIVATE KEY"), _read("the certificate", certificate, "CERTIFICATE")
    )


def _read(what: str, path: str | Path, kind: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror or error}") from None
    # gRPC says nothing of a file that it cannot use until a call fails, and then not which.
    if kind.encode() + b"-----" not in data:
        raise ConfigurationError(f"{what} {path} holds no {kind.lower()} in PEM form")
    return data
