"""Addresses of HTTP: read as they are meant, or refused by their fault."""

from __future__ import annotations

import pytest

from stillhouse.errors import ConfigurationError
from stillhouse.http_address import HttpAddress, is_http, is_secure


@pytest.mark.parametrize(
    ("address", "host", "port", "prefix", "secure", "authority"),
    [
        ("http://gpu0:8000", "gpu0", 8000, "", False, "gpu0:8000"),
        ("http://gpu0", "gpu0", 80, "", False, "gpu0:80"),
        ("https://teacher.example", "teacher.example", 443, "", True, "teacher.example:443"),
        ("https://proxy:8443/team/teacher/", "proxy", 8443, "/team/teacher", True, "proxy:8443"),
        ("HTTP://GPU0:8000/", "gpu0", 8000, "", False, "gpu0:8000"),
        ("http://[::1]:8000", "::1", 8000, "", False, "[::1]:8000"),
    ],
)
def test_an_address_is_read(address: str, host: str, port: int, prefix: str, secure: bool, authority: str) -> None:
    found = HttpAddress.of(address)
    assert (found.host, found.port, found.prefix, found.is_secure) == (host, port, prefix, secure)
    assert found.authority == authority
    assert is_http(address)
    assert is_secure(address) is secure


@pytest.mark.parametrize("address", ["gpu0:8001", "dns:///gpu0:8001", "unix:/run/teacher", "http", "http:8001", ""])
def test_addresses_of_grpc_are_none(address: str) -> None:
    assert not is_http(address)
    assert not is_secure(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://", "http://:8000", "http://gpu0:", "http://gpu0:0", "http://gpu0:65536", "http://gpu0:x",
        "http://gpu0:8000/?a=b", "http://gpu0:8000/#there", "http://gpu 0:8000", "http://gpu0:8000/a\r\nb: c",
        "http://gpu0:8000/ä", "http://[::1:8000",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="address"):
        HttpAddress.of(address)


def test_a_password_in_an_address_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigurationError, match="give the token as token") as refused:
        HttpAddress.of("http://me:s3cret@gpu0:8000")
    assert "s3cret" not in str(refused.value)
