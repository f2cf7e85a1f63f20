"""TeacherClient: a teacher service as a `TeacherLogitsProvider`. The same for asyncio is in `async_client`.

Every answer is checked before it is handed out (see `exchange`), and every error is the one that the service meant. A
call has a deadline, and is tried again, within bounds (see `retries`). How it travels is in `grpc_calls` and
`http_calls`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import tenacity

from stillhouse.async_client import AsyncTeacherClient
from stillhouse.calls import Calls
from stillhouse.client_base import ClientBase
from stillhouse.cutting import Part, join_answers
from stillhouse.encodings import ValueType
from stillhouse.errors import StillhouseError, TeacherTimeoutError
from stillhouse.exchange import decode_answer
from stillhouse.grpc_calls import GrpcCalls
from stillhouse.http_calls import HttpCalls
from stillhouse.payloads import OutputHead
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest, TeacherDescription
from stillhouse.request_ids import naming_errors, request_id
from stillhouse.retries import LEAST_TIMEOUT_SECONDS, Retries
from stillhouse.tracing import span

_R = TypeVar("_R")

__all__ = ["AsyncTeacherClient", "TeacherClient"]


class TeacherClient(ClientBase, TeacherLogitsProvider):
    """Asks a teacher service; several threads may share one. Use it in `with`, or `close` it.

    What it raises is the class of `stillhouse.errors` that the service meant, and besides: `CodecError` or
    `StreamError` for an answer damaged on its way, `TeacherInternalError` for one to another question, and
    `FingerprintMismatchError` when the teacher has become another.
    """

    def _open(self) -> None:
        self._calls: Calls = (
            HttpCalls(self.address, self._tls_context)
            if self._is_http
            else GrpcCalls(self.address, self._channel_credentials, self._channel_options)
        )
        self._describing = threading.Lock()
        self._fetching_head = threading.Lock()

    def describe(self, *, include_tokens: bool = False) -> TeacherDescription:
        """Return what is served; asked once, and with `include_tokens` once more."""
        known = self._descriptions.get(include_tokens)
        if known is not None:
            return known
        with self._held(self._describing):
            known = self._descriptions.get(include_tokens)
            if known is not None:
                return known
            message = self._call(
                lambda seconds: self._calls.describe(
                    include_tokens=include_tokens, seconds=seconds, metadata=self._metadata
                )
            )
            return self._remember(message, include_tokens=include_tokens)

    def answer(self, request: LogitsRequest) -> Answer:
        """Answer a request; one over the teacher's limits on sequences, tokens or bytes is asked in parts."""
        teacher = self.describe()
        parts = self._parts(request, teacher)
        return join_answers(parts, [self._answer_part(part) for part in parts], teacher.fingerprint)

    def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        """Return what rebuilds the logits from a `Hidden` answer; fetched once for each value type.

        `value_type` is "float32" or "bfloat16"; None is what the teacher computes in. The tensors are shared by all
        who ask: they are read, never changed.
        """
        with self._held(self._fetching_head):
            if value_type not in self._heads:
                teacher = self.describe()
                self._heads[value_type] = self._call(
                    lambda seconds: self._calls.output_head(
                        self._head_reader(teacher, value_type), seconds=seconds, metadata=self._metadata
                    )
                )
            return self._heads[value_type]

    def close(self) -> None:
        """Close what is open; calls still under way end with an error."""
        self._is_closed = True
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer_part(self, part: Part) -> Answer:
        # Decoded within the attempt: damaged bytes are a reason to ask again.
        return self._call(
            lambda seconds: decode_answer(part, self._calls.answer(part, seconds=seconds, metadata=self._metadata))
        )

    @contextmanager
    def _held(self, lock: threading.Lock) -> Iterator[None]:
        if not lock.acquire(timeout=self._timeout_seconds):
            raise TeacherTimeoutError(self._still_asked())
        try:
            yield
        finally:
            lock.release()

    def _call(self, attempt: Callable[[float], _R]) -> _R:
        """Return what `attempt` returns; it is given the seconds that are left to it."""
        deadline = time.monotonic() + self._timeout_seconds

        def once() -> _R:
            self._check_usable()
            try:
                return attempt(max(deadline - time.monotonic(), LEAST_TIMEOUT_SECONDS))
            except StillhouseError:
                self._check_usable()  # closed meanwhile: not the teacher's fault, and not to be tried again
                raise

        # One id for all attempts: the teacher's log then shows them together.
        with request_id() as name, naming_errors(name), span("teacher call", request_id=name):
            try:
                return once()
            except StillhouseError as error:
                again = Retries.resuming(error, once)
            return tenacity.Retrying(**self._new_retries(deadline - time.monotonic()).options())(again)
