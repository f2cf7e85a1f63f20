"""What the sync and the asyncio client have in common: settings, what is known of the teacher, when to try again.

Knows nothing of waiting: that is the one thing in which the two differ.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import grpc
import tenacity

from stillhouse.encodings import ValueType
from stillhouse.errors import ConfigurationError, OverloadedError, TeacherUnavailableError
from stillhouse.exchange import Part, check_fingerprint, cut
from stillhouse.head_exchange import HeadReader
from stillhouse.messages import description_from_proto
from stillhouse.payloads import OutputHead
from stillhouse.request import LogitsRequest, TeacherDescription
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

_logger = logging.getLogger("stillhouse.client")

_SCHEMES = ("dns", "unix", "unix-abstract", "ipv4", "ipv6", "vsock", "xds")
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0


class ClientBase(ABC):
    """The settings and the memory of a client."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        expected_fingerprint: str = "",
        timeout_seconds: float = 120.0,
        max_attempts: int = 8,
        max_answer_bytes: int = 4 * 2**30,
        max_message_bytes: int = 64 * 2**20,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Name a teacher; nothing is sent yet.

        Args:
            address: "host:port", or a gRPC target; "dns:///host:port" goes round all addresses of a name.
            token: sent with each call. Without `credentials` it travels in the clear, as everything does.
            expected_fingerprint: the only teacher whose answers are taken. By default the one described first.
            timeout_seconds: how long a call may take, its retries and the waits between them included. A request
                that is cut into parts has this time for each.
            max_attempts: how often a call is tried while the service is unavailable or overloaded.
            max_answer_bytes: a request whose answer could be larger is refused before it is sent.
            max_message_bytes: the largest message accepted or sent; the service's limit may be lower.
            credentials: for a service behind TLS.

        Raises:
            ConfigurationError: an address that gRPC would misread, or a bound that is not positive.
        """
        _check_address(address)
        for name, bound in (
            ("timeout_seconds", timeout_seconds),
            ("max_attempts", max_attempts),
            ("max_answer_bytes", max_answer_bytes),
            ("max_message_bytes", max_message_bytes),
        ):
            if not 0 < bound < math.inf:
                raise ConfigurationError(f"{name} must be above 0 and finite; got {bound}")
        self.address = address
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._expected_fingerprint = expected_fingerprint
        self._timeout_seconds = timeout_seconds
        self._max_attempts = max_attempts
        self._max_answer_bytes = max_answer_bytes
        self._credentials = credentials
        self._channel_options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
            # One layer of retries, ours: it knows the deadline of the whole call.
            ("grpc.enable_retries", 0),
            # A service that is back is found within the waits between our attempts.
            ("grpc.initial_reconnect_backoff_ms", int(_FIRST_WAIT_SECONDS * 1000)),
            ("grpc.min_reconnect_backoff_ms", int(_FIRST_WAIT_SECONDS * 1000)),
            ("grpc.max_reconnect_backoff_ms", int(_LONGEST_WAIT_SECONDS * 1000)),
        ]
        self._descriptions: dict[bool, TeacherDescription] = {}
        self._heads: dict[ValueType | None, OutputHead] = {}
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Make ready what calls go through."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def _remember(self, message: pb.GetTeacherResponse, *, include_tokens: bool) -> TeacherDescription:
        description = description_from_proto(message)
        check_fingerprint(description.fingerprint, self._expected_fingerprint)
        self._expected_fingerprint = description.fingerprint
        self._descriptions[include_tokens] = description
        return description

    def _head_reader(self, teacher: TeacherDescription, value_type: ValueType | None) -> HeadReader:
        return HeadReader(teacher, value_type, max_bytes=self._max_answer_bytes)

    def _parts(self, request: LogitsRequest, teacher: TeacherDescription) -> list[Part]:
        # The service refuses before it computes, should it have become another teacher since.
        expected = request.expected_fingerprint or teacher.fingerprint
        return cut(replace(request, expected_fingerprint=expected), teacher, max_answer_bytes=self._max_answer_bytes)

    def _retry_options(self) -> dict[str, Any]:
        """Return the arguments of a `tenacity` retrying, sync or asyncio."""
        return {
            "stop": tenacity.stop_after_attempt(self._max_attempts) | tenacity.stop_before_delay(self._timeout_seconds),
            "wait": _wait_seconds,
            "retry": tenacity.retry_if_exception(_may_succeed_later),
            "before_sleep": self._log_retry,
            "reraise": True,
        }

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        _logger.warning(
            "teacher %s: attempt %d of %d failed, the next in %.1f s: %s",
            self.address,
            state.attempt_number,
            self._max_attempts,
            state.upcoming_sleep,
            _exception_of(state),
        )


# Doubles from attempt to attempt; drawn at random below that, so that many workers do not come back at once.
_backoff = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS)


def _wait_seconds(state: tenacity.RetryCallState) -> float:
    error = _exception_of(state)
    pushback = error.retry_after_seconds if isinstance(error, OverloadedError) else _FIRST_WAIT_SECONDS / 2
    return pushback + _backoff(state)


def _may_succeed_later(error: BaseException) -> bool:
    if isinstance(error, OverloadedError):
        return math.isfinite(error.retry_after_seconds)
    return isinstance(error, TeacherUnavailableError)


def _exception_of(state: tenacity.RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _check_address(address: str) -> None:
    scheme, colon, rest = address.partition(":")
    if "://" in address and scheme not in _SCHEMES:
        raise ConfigurationError(f"address must be host:port, without {scheme}://; got {address!r}")
    if not colon or not rest:
        raise ConfigurationError(f"address must be host:port; got {address!r}")
