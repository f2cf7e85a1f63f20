"""A port that several processes of one service share is nobody else's."""

from __future__ import annotations

import socket

import pytest

from stillhouse.errors import ConfigurationError
from teacher_service.addresses import bind, hold_shared


def test_a_held_port_is_shared_by_those_who_listen() -> None:
    sockets = hold_shared("127.0.0.1", 0, "grpc_port")
    address = sockets[0].getsockname()
    with sockets[0], sockets[1], socket.socket() as one, socket.socket() as other:
        for listening in (one, other):
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind(address)
            listening.listen()
        with socket.create_connection(address, 5):
            pass
        with pytest.raises(ConfigurationError, match="grpc_port: cannot listen"):
            bind("127.0.0.1", address[1], "grpc_port")


def test_two_services_that_begin_together_are_not_given_one_port() -> None:
    first = hold_shared("127.0.0.1", 0, "grpc_port")
    port = first[0].getsockname()[1]
    with pytest.raises(ConfigurationError, match="cannot be shared"):
        hold_shared("127.0.0.1", port, "grpc_port")
    for one in first:
        one.close()
    for one in hold_shared("127.0.0.1", port, "grpc_port"):
        one.close()
