"""Credentials of a client from PEM files: what is taken, and what is refused with its name."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from stillhouse.credentials import channel_credentials, tls_context
from stillhouse.errors import ConfigurationError


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    authority = trustme.CA()
    leaf = authority.issue_cert("trainer.example")
    paths = tmp_path / "ca.crt", tmp_path / "tls.crt", tmp_path / "tls.key"
    authority.cert_pem.write_to_path(str(paths[0]))
    leaf.cert_chain_pems[0].write_to_path(str(paths[1]))
    leaf.private_key_pem.write_to_path(str(paths[2]))
    return paths


def test_nothing_named_is_no_tls() -> None:
    assert channel_credentials() is None
    assert tls_context() is None


def test_an_authority_and_a_pair_are_taken(files: tuple[Path, Path, Path]) -> None:
    ca, certificate, key = files
    for given in ((ca,), (str(ca),), ("system",), (ca, certificate, key), ("system", str(certificate), str(key))):
        assert isinstance(channel_credentials(*given), grpc.ChannelCredentials)
        context = tls_context(*given)
        assert context is not None
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED


def test_what_cannot_be_used_is_named(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    ca, certificate, key = files
    nowhere = tmp_path / "nowhere"
    for given, message in (
        ((nowhere,), "the authority .*nowhere cannot be read: No such file"),
        ((key,), r"the authority .*tls\.key holds no certificate"),
        ((ca, key, key), r"the certificate .*tls\.key holds no certificate"),
        ((ca, certificate, ca), r"the key .*ca\.crt holds no private key"),
        ((ca, certificate), "given together"),
        ((None, certificate, key), "without the authority"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            channel_credentials(*given)
        with pytest.raises(ConfigurationError, match=message):
            tls_context(*given)


def test_files_that_do_not_fit_together_or_hold_something_else_are_named(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    ca, certificate, _ = files
    strange = tmp_path / "strange.key"
    trustme.CA().issue_cert("other.example").private_key_pem.write_to_path(str(strange))
    with pytest.raises(ConfigurationError, match=r"tls\.crt with the key .*strange\.key cannot be used"):
        channel_credentials(ca, certificate, strange)
    for name, kind in (("ca.pem", "CERTIFICATE"), ("key.pem", "PRIVATE KEY")):
        (tmp_path / name).write_text(f"-----BEGIN {kind}-----\nnonsense\n-----END {kind}-----\n")
    with pytest.raises(ConfigurationError, match=r"the authority .*ca\.pem cannot be used"):
        channel_credentials(tmp_path / "ca.pem")
    with pytest.raises(ConfigurationError, match=r"the key .*key\.pem cannot be used"):
        channel_credentials(ca, certificate, tmp_path / "key.pem")


def test_an_encrypted_key_is_refused_instead_of_asked_for(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    ca, certificate, key = files
    locked = tmp_path / "locked.key"
    private = load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a passphrase"))
    )
    with pytest.raises(ConfigurationError, match=r"locked\.key"):
        channel_credentials(ca, certificate, locked)
