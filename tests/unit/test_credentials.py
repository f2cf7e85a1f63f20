"""Credentials of a client from PEM files: what is taken, and what is refused with its name."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
import trustme

from stillhouse.credentials import channel_credentials
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


def test_an_authority_and_a_pair_are_taken(files: tuple[Path, Path, Path]) -> None:
    ca, certificate, key = files
    for given in ((ca,), (str(ca),), ("system",), (ca, certificate, key), ("system", str(certificate), str(key))):
        assert isinstance(channel_credentials(*given), grpc.ChannelCredentials)


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
