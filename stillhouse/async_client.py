"""AsyncTeacherClient: what `client.TeacherClient` does, for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar

import tenacity
from torch import Tensor

from stillhouse.async_http_calls import AsyncHttpCalls
from stillhouse.calls import AsyncCalls
from stillhouse.client_base import ClientBase
from stillhouse.cutting import Part, join_answers
from stillhouse.encodings import Encoding, ValueType
from stillhouse.errors import ConfigurationError, StillhouseError, TeacherTimeoutError
from stillhouse.exchange import decode_answer
from stillhouse.grpc_calls import AsyncGrpcCalls
from stillhouse.payloads import OutputHead, Payload
from stillhouse.plain_requests import CandidateRows, PositionChoice, TokenRows, plain_request
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest, TeacherDescription
from stillhouse.request_ids import naming_errors, request_id
from stillhouse.retries import LEAST_TIMEOUT_SECONDS, Retries
from stillhouse.scoring import plan_scoring
from stillhouse.tracing import span

_R = TypeVar("_R")


class AsyncTeacherClient(ClientBase):
    """The same as `TeacherClient`, for asyncio: use it in `async with`, or `close` it, in one event loop."""

    def _open(self) -> None:
        self._opened: AsyncCalls | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._describing = asyncio.Lock()
        self._fetching_head = asyncio.Lock()

    async def describe(self, *, include_tokens: bool = False) -> TeacherDescription:
        """Return what is served; asked once, and with `include_tokens` once more."""
        known = self._descriptions.get(include_tokens)
        if known is not None:
            return known
        async with self._held(self._describing):
            known = self._descriptions.get(include_tokens)
            if known is not None:
                return known
            message = await self._call(
                lambda seconds: self._calls().describe(
                    include_tokens=include_tokens, seconds=seconds, metadata=self._metadata
                )
            )
            return self._remember(message, include_tokens=include_tokens)

    async def answer(self, request: LogitsRequest) -> Answer:
        """Answer a request; one over the teacher's limits on sequences, tokens or bytes is asked in parts."""
        teacher = await self.describe()
        parts = self._parts(request, teacher)
        return join_answers(parts, [await self._answer_part(part) for part in parts], teacher.fingerprint)

    async def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        """Return what rebuilds the logits from a `Hidden` answer, as `TeacherClient.output_head` does."""
        async with self._held(self._fetching_head):
            if value_type not in self._heads:
                teacher = await self.describe()
                self._heads[value_type] = await self._call(
                    lambda seconds: self._calls().output_head(
                        self._head_reader(teacher, value_type), seconds=seconds, metadata=self._metadata
                    )
                )
            return self._heads[value_type]

    async def logits(
        self,
        input_ids: TokenRows,
        *,
        encoding: Encoding | None = None,
        positions: PositionChoice | None = None,
        temperature: float = 1.0,
        vocabulary_size: int = 0,
        candidate_ids: CandidateRows | None = None,
    ) -> tuple[Payload, ...]:
        """Ask about plain sequences of ids, as `TeacherLogitsProvider.logits` does."""
        request = plain_request(
            input_ids,
            encoding=encoding,
            positions=positions,
            temperature=temperature,
            vocabulary_size=vocabulary_size,
            candidate_ids=candidate_ids,
        )
        return (await self.answer(request)).payloads

    async def log_probs(
        self,
        input_ids: TokenRows,
        candidate_ids: CandidateRows | None = None,
        *,
        positions: PositionChoice | None = None,
        temperature: float = 1.0,
        vocabulary_size: int = 0,
    ) -> list[Tensor]:
        """Return the teacher's log-probabilities of named tokens, as `TeacherLogitsProvider.log_probs` does."""
        scoring = plan_scoring(
            input_ids, candidate_ids, positions=positions, temperature=temperature, vocabulary_size=vocabulary_size
        )
        return scoring.read((await self.answer(scoring.request)).payloads)

    async def close(self) -> None:
        """Close what is open; calls still under way end with an error."""
        self._is_closed = True
        if self._opened is not None:
            await self._opened.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _calls(self) -> AsyncCalls:
        # Opened by the first call: what carries it belongs to the event loop in which it is made.
        loop = asyncio.get_running_loop()
        if self._opened is None:
            self._loop = loop
            self._opened = (
                AsyncHttpCalls(self.address, self._tls_context)
                if self._is_http
                else AsyncGrpcCalls(self.address, self._channel_credentials, self._channel_options)
            )
        elif self._loop is not loop:
            raise ConfigurationError(f"{self!r} belongs to the event loop that it was first used in; open another")
        return self._opened

    async def _answer_part(self, part: Part) -> Answer:
        async def attempt(seconds: float) -> Answer:
            return decode_answer(part, await self._calls().answer(part, seconds=seconds, metadata=self._metadata))

        return await self._call(attempt)

    @asynccontextmanager
    async def _held(self, lock: asyncio.Lock) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await lock.acquire()
        except TimeoutError:
            raise TeacherTimeoutError(self._still_asked()) from None
        try:
            yield
        finally:
            lock.release()

    async def _call(self, attempt: Callable[[float], Awaitable[_R]]) -> _R:
        """Return what `attempt` returns; it is given the seconds that are left to it."""
        deadline = time.monotonic() + self._timeout_seconds

        async def once() -> _R:
            self._check_usable()
            try:
                return await attempt(max(deadline - time.monotonic(), LEAST_TIMEOUT_SECONDS))
            except StillhouseError:
                self._check_usable()  # closed meanwhile: not the teacher's fault, and not to be tried again
                raise

        # One id for all attempts: the teacher's log then shows them together.
        with request_id() as name, naming_errors(name), span("teacher call", request_id=name):
            try:
                return await once()
            except StillhouseError as error:
                resumed = Retries.resuming(error, once)

            async def again() -> _R:
                return await resumed()

            return await tenacity.AsyncRetrying(**self._new_retries(deadline - time.monotonic()).options())(again)
