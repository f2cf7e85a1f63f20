"""What a client makes of an address."""

import pytest

from stillhouse.channel import check_address, is_local
from stillhouse.errors import ConfigurationError


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("localhost:8001", True),
        ("127.0.0.1:8001", True),
        ("127.8.0.1:8001", True),
        ("[::1]:8001", True),
        ("unix:/run/teacher", True),
        ("dns:///localhost:8001", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("ipv6:[::1]:8001", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("gpu0:8001", False),
        ("dns:///teacher.example:8001", False),
        ("localhost.example:8001", False),
        ("10.0.0.1:8001", False),
        ("[2001:db8::1]:8001", False),
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("https://[::1]:8443/teacher", True),
        ("http://gpu0:8000", False),
        ("https://teacher.example/127.0.0.1:1", False),
    ],
)
def test_an_address_is_local_where_nothing_leaves_the_machine(address: str, local: bool) -> None:
    check_address(address)
    assert is_local(address) is local


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        "ftp://host:1",
        "http://:1",
        "https://host:99999",
        "host:0",
        "host:abc",
        "127.0.0.1:99999",
        ":8001",
        "ipv4:10.0.0.1:1,10.0.0.2:65536",
    ],
)
def test_what_would_be_misread_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"host:port|Port"):
        check_address(address)
