"""What the sync and the asyncio client have in common: settings, and what is known of the teacher.

Knows nothing of waiting: that is the one thing in which the two differ.
"""

from __future__ import annotations

import logging
import math
import os
import ssl
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Any

import grpc

from stillhouse.channel import LEAST_MESSAGE_BYTES, check_address, default_options, is_local
from stillhouse.credentials import Credentials
from stillhouse.cutting import Part, cut
from stillhouse.encodings import ValueType
from stillhouse.errors import ConfigurationError
from stillhouse.exchange import check_fingerprint
from stillhouse.head_exchange import HeadReader
from stillhouse.http_address import is_http, is_secure
from stillhouse.http_forms import MAX_REQUEST_BYTES
from stillhouse.messages import description_from_proto
from stillhouse.payloads import OutputHead
from stillhouse.request import LogitsRequest, TeacherDescription
from stillhouse.request_ids import REQUEST_ID_HEADER, current_request_id, new_request_id
from stillhouse.retries import Retries
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.tracing import trace_headers

_logger = logging.getLogger("stillhouse.client")


class ClientBase(ABC):
    """The settings and the memory of a client."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        expected_fingerprint: str = "",
        timeout_seconds: float = 120.0,
        max_attempts: int = 12,
        max_answer_bytes: int = 4 * 2**30,
        max_head_bytes: int = 8 * 2**30,
        max_message_bytes: int = 64 * 2**20,
        credentials: Credentials | None = None,
        channel_options: SequenceOf[tuple[str, Any]] = (),
    ) -> None:
        """Name a teacher; nothing is sent yet.

        Args:
            address: "host:port", or a gRPC target: "dns:///host:port", "ipv4:10.0.0.1:8001,10.0.0.2:8001",
                "unix:/run/teacher". Calls go round all addresses of a name, whether or not it says dns. Or that of
                the teacher's HTTP door: "http://host:port", or "https://" with whatever path a proxy put before it.
            token: sent with each call. Without `credentials` it travels in the clear, as everything does.
            expected_fingerprint: the only teacher whose answers are taken. By default the one described first.
            timeout_seconds: how long a call may take, its retries and the waits between them included. A request
                that is cut into parts has this time for each.
            max_attempts: how often a call is tried while the service is unavailable or overloaded.
            max_answer_bytes: a request whose answer could be larger is refused before it is sent.
            max_head_bytes: the largest output head that is fetched; it is held until the client goes.
            max_message_bytes: the largest message accepted or sent, at least 2 MiB; the service's limit may be lower.
            credentials: for a service behind TLS: see `credentials.credentials_for`. An https address without them
                trusts what this machine does.
            channel_options: gRPC's own options, which win over ours; without effect over HTTP.

        Raises:
            ConfigurationError: an address that would be misread, a bound that is not positive or too low, a token
                that no header can hold, or credentials of the other protocol.
        """
        check_address(address)
        self._is_http = is_http(address)
        _check_credentials(address, credentials, is_http=self._is_http)
        for name, bound, least in (
            ("timeout_seconds", timeout_seconds, 0),
            ("max_attempts", max_attempts, 0),
            ("max_answer_bytes", max_answer_bytes, 0),
            ("max_head_bytes", max_head_bytes, 0),
            ("max_message_bytes", max_message_bytes, LEAST_MESSAGE_BYTES - 1),
        ):
            if not least < bound < math.inf:
                raise ConfigurationError(f"{name} must be above {least} and finite; got {bound}")
        if token is not None and not (token.isascii() and token.isprintable() and token == token.strip() != ""):
            raise ConfigurationError("token must be printable ASCII without spaces around it; got other characters")
        if token and credentials is None and not is_secure(address) and not is_local(address):
            _logger.warning("teacher %s: the token travels in the clear; give credentials to use TLS", address)
        self.address = address
        self._authorization = (("authorization", f"Bearer {token}"),) if token else ()
        self._expected_fingerprint = expected_fingerprint
        self._timeout_seconds = timeout_seconds
        self._max_attempts = max_attempts
        self._max_answer_bytes = max_answer_bytes
        self._max_head_bytes = max_head_bytes
        self._max_message_bytes = max_message_bytes
        self._tls_context = credentials if isinstance(credentials, ssl.SSLContext) else None
        self._channel_credentials = credentials if isinstance(credentials, grpc.ChannelCredentials) else None
        self._channel_options: list[tuple[str, Any]] = [*default_options(max_message_bytes), *channel_options]
        self._descriptions: dict[bool, TeacherDescription] = {}
        self._heads: dict[ValueType | None, OutputHead] = {}
        self._retries: Counter[str] = Counter()
        self._process_id = os.getpid()
        self._is_closed = False
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Make ready what calls go through."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    @property
    def retries(self) -> dict[str, int]:
        """How many calls were tried again since the client was made, by the class of the error that they met."""
        return dict(self._retries)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """What is sent with a call: the token, and the id of the request that it is a part of."""
        return (*self._authorization, (REQUEST_ID_HEADER, current_request_id() or new_request_id()), *trace_headers())

    def _check_usable(self) -> None:
        if self._is_closed:
            raise ConfigurationError(f"{self!r} is closed; open another")
        if self._process_id != os.getpid():
            # The threads of its channel stayed behind in the parent: a call would wait for ever.
            raise ConfigurationError(
                f"{self!r} was opened in process {self._process_id}, and process {os.getpid()} is a fork of it: open "
                "clients in the processes that use them"
            )

    def _still_asked(self) -> str:
        return f"teacher {self.address}: what others wait for too did not come within {self._timeout_seconds:g} s"

    def _new_retries(self, seconds_left: float) -> Retries:
        return Retries(
            self.address,
            max_attempts=self._max_attempts,
            timeout_seconds=seconds_left,
            on_retry=lambda error: self._retries.update([type(error).__name__]),
        )

    def _remember(self, message: pb.GetTeacherResponse, *, include_tokens: bool) -> TeacherDescription:
        description = description_from_proto(message)
        check_fingerprint(description.fingerprint, self._expected_fingerprint)
        self._expected_fingerprint = description.fingerprint
        self._descriptions[include_tokens] = description
        return description

    def _head_reader(self, teacher: TeacherDescription, value_type: ValueType | None) -> HeadReader:
        return HeadReader(teacher, value_type, max_bytes=self._max_head_bytes)

    def _parts(self, request: LogitsRequest, teacher: TeacherDescription) -> list[Part]:
        # The service refuses before it computes, should it have become another teacher since.
        expected = request.expected_fingerprint or teacher.fingerprint
        return cut(
            replace(request, expected_fingerprint=expected),
            teacher,
            max_answer_bytes=self._max_answer_bytes,
            max_message_bytes=min(self._max_message_bytes, MAX_REQUEST_BYTES)
            if self._is_http
            else self._max_message_bytes,
        )


def _check_credentials(address: str, credentials: Credentials | None, *, is_http: bool) -> None:
    if credentials is None:
        return
    if is_http and not is_secure(address):
        raise ConfigurationError(f"credentials are for TLS, which {address!r} does not speak: say https://")
    if is_http is not isinstance(credentials, ssl.SSLContext):
        raise ConfigurationError(
            f"credentials for {address!r} must be {'an ssl.SSLContext' if is_http else 'of gRPC'}; got "
            f"{type(credentials).__name__}: credentials_for(address, ...) makes the right ones"
        )
