"""The one way to an answer: cache, single flight, batch, compute, encode, remember.

Every door hands a `LogitsRequest` in and gets payload bytes back. Knows nothing of gRPC, HTTP or tokens of access.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from stillhouse.codec import verify_payload
from stillhouse.encodings import Candidates, Dense, Hidden, Sampled, TopK
from stillhouse.errors import CodecError, RequestTooLongError
from stillhouse.fingerprint import cache_key
from stillhouse.payload_header import Header, expected_headers
from stillhouse.payloads import OutputHead
from stillhouse.request import LogitsRequest, TeacherDescription
from stillhouse.version import __version__
from teacher_service.backends import BackendDescription, TeacherBackend
from teacher_service.batching import Batcher, Computed, Job
from teacher_service.cache import AnswerCache
from teacher_service.capacity import Capacity, Place
from teacher_service.computing import BatchComputer, answers_fingerprint
from teacher_service.metrics import Metrics
from teacher_service.settings import TeacherSettings
from teacher_service.single_flight import SingleFlight, Ticket


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """One payload per sequence as bytes, in the order asked. Times in seconds; those of what was computed."""

    payloads: tuple[bytes, ...]
    fingerprint: str
    cache_hits: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    encode_seconds: float = 0.0

    @property
    def num_bytes(self) -> int:
        """Bytes of all payloads together."""
        return sum(map(len, self.payloads))


class Teacher:
    """Answers requests with one backend; for one event loop, with the backend in a thread of its own."""

    def __init__(
        self,
        backend: TeacherBackend,
        cache: AnswerCache | None,
        executor: Executor,
        metrics: Metrics,
        settings: TeacherSettings,
    ) -> None:
        self._cache = cache
        self._metrics = metrics
        self._max_answer_bytes = settings.max_answer_bytes
        self._capacity = Capacity(
            metrics,
            max_requests=settings.max_concurrent_requests,
            max_queue_sequences=settings.max_queue_sequences,
            max_queue_tokens=settings.max_queue_tokens,
            max_held_bytes=settings.max_held_bytes,
        )
        self._flights: SingleFlight[bytes, Computed] = SingleFlight()
        compute = BatchComputer(backend, metrics, head_chunk_rows=settings.head_chunk_rows)
        self._batcher = Batcher(
            compute,
            self._remember,
            executor,
            metrics,
            budget=lambda: min(settings.max_batch_tokens, compute.largest_fitting_tokens or settings.max_batch_tokens),
            padded_tokens=backend.padded_tokens,
            max_queue_delay_seconds=settings.max_queue_delay_seconds,
            measure=self._capacity.measure,
        )
        self.running = asyncio.create_task(self._batcher.run(), name="batcher")
        """Ends only when `close` is called; a service whose teacher has ended otherwise cannot go on."""
        self.output_head = backend.output_head()
        """The head with which a caller rebuilds logits from HIDDEN; None where HIDDEN is not offered."""
        self.description = _describe(backend.describe(), self.output_head, settings)

    def check(self, request: LogitsRequest) -> int:
        """Check a request against this teacher; return the most bytes that its payloads can have.

        Raises:
            TeacherError: what it would be answered.
        """
        request.check(self.description)
        size = sum(header.size_bounds()[1] for header in expected_headers(request, self.description))
        if size > self._max_answer_bytes:
            raise RequestTooLongError(
                f"sequences: their answer would have {size} bytes, over this teacher's limit of "
                f"{self._max_answer_bytes}; send several requests, or ask for a sparser encoding"
            )
        return size

    @asynccontextmanager
    async def answering(self, request: LogitsRequest) -> AsyncIterator[EncodedAnswer]:
        """Answer a request: `async with teacher.answering(request) as answer`; send the answer inside.

        The bytes count as held until the context ends, so that slow readers bound what the service takes on.

        Raises:
            OverloadedError: a bound is reached; it says when to come again.
            TeacherError: another of its kinds, when there is no answer.
        """
        size = self.check(request)
        token_counts = [len(sequence.token_ids) for sequence in request.sequences]
        with self._capacity.admitting(token_counts, answer_bytes=size) as place:
            yield await self._answer(request, place)

    async def _answer(self, request: LogitsRequest, place: Place) -> EncodedAnswer:
        headers = expected_headers(request, self.description)
        keys = [self._key(request, index) for index in range(len(request.sequences))]
        remembered = await self._look_up(request, dict(zip(keys, headers, strict=True)))
        computed = await self._compute_missing(request, keys, remembered, place)
        answers = list(computed.values())
        return EncodedAnswer(
            payloads=tuple(remembered[key] if key in remembered else computed[key].payload for key in keys),
            fingerprint=self.description.fingerprint,
            cache_hits=sum(key in remembered for key in keys),
            queue_seconds=max((answer.queue_seconds for answer in answers), default=0.0),
            # Sequences of one batch share their times, to the bit.
            compute_seconds=sum({answer.compute_seconds for answer in answers}),
            encode_seconds=sum({answer.encode_seconds for answer in answers}),
        )

    @property
    def cache_state(self) -> str:
        """`on`, `off`, or `paused` where Redis has failed; for people."""
        if self._cache is None:
            return "off"
        return "paused" if self._cache.is_paused else "on"

    async def close(self) -> None:
        """Give up what still waits, and end the batch that computes."""
        self._batcher.close()
        self.running.cancel()
        await asyncio.wait({self.running})

    def _key(self, request: LogitsRequest, index: int) -> bytes:
        return cache_key(
            self.description.fingerprint,
            request.sequences[index],
            request.encoding,
            temperature=request.temperature,
            vocabulary_size=request.effective_vocabulary_size(self.description.vocabulary_size),
        )

    async def _look_up(self, request: LogitsRequest, expected: dict[bytes, Header]) -> dict[bytes, bytes]:
        """Return what the cache holds of these keys, whole and as asked for."""
        count = self._metrics.cache_requests.labels
        if request.cache_mode != "use":
            count(request.cache_mode).inc(len(expected))
            return {}
        if self._cache is None or not expected:
            return {}
        keys = list(expected)
        values = await self._cache.get_many(keys, [header.size_bounds()[1] for header in expected.values()])
        if values is None:
            count("error").inc(len(keys))
            return {}
        found = {}
        for key, value in zip(keys, values, strict=True):
            if value is None:
                count("miss").inc()
            elif _is_payload(value, expected[key]):
                count("hit").inc()
                found[key] = value
            else:
                # It will be computed anew and overwritten.
                count("corrupt").inc()
        return found

    async def _compute_missing(
        self, request: LogitsRequest, keys: SequenceOf[bytes], remembered: dict[bytes, bytes], place: Place
    ) -> dict[bytes, Computed]:
        """Return what is not remembered, each key computed once however many ask for it."""
        missing = {key: index for index, key in enumerate(keys) if key not in remembered}
        tickets: dict[bytes, Ticket[Computed]] = {}
        try:
            for key in missing:
                # What must not be remembered cannot share a flight with what must.
                tickets[key] = self._flights.board(key if request.cache_mode != "bypass" else b"bypass" + key)
            jobs = [self._job(request, missing[key], key, t) for key, t in tickets.items() if t.is_first]
            self._metrics.joined.inc(len(tickets) - len(jobs))
            place.leave_all_but([job.num_tokens for job in jobs])
            for job in jobs:
                job.result.add_done_callback(partial(self._leave_queue, job.num_tokens))
            self._batcher.submit(jobs)
            return {key: await ticket.wait() for key, ticket in tickets.items()}
        finally:
            for ticket in tickets.values():
                ticket.leave()

    def _leave_queue(self, tokens: int, _: object) -> None:
        self._capacity.change_queue(-1, -tokens)

    def _job(self, request: LogitsRequest, index: int, key: bytes, ticket: Ticket[Computed]) -> Job:
        return Job(
            sequence=request.sequences[index],
            encoding=request.encoding,
            temperature=request.temperature,
            vocabulary_size=request.effective_vocabulary_size(self.description.vocabulary_size),
            key=None if request.cache_mode == "bypass" else key,
            result=ticket.result,
        )

    async def _remember(self, items: SequenceOf[tuple[bytes, bytes]]) -> None:
        if self._cache is not None and items:
            await self._cache.set_many(items)


def _is_payload(value: bytes, expected: Header) -> bool:
    try:
        return verify_payload(value) == expected
    except CodecError:
        return False


def _describe(
    backend: BackendDescription, output_head: OutputHead | None, settings: TeacherSettings
) -> TeacherDescription:
    limits = settings.limits
    return TeacherDescription(
        model=backend.model,
        fingerprint=answers_fingerprint(backend, head_chunk_rows=settings.head_chunk_rows),
        weights_fingerprint=backend.weights_fingerprint,
        tokenizer_fingerprint=backend.tokenizer_fingerprint,
        vocabulary_size=backend.vocabulary_size,
        tokenizer_size=len(backend.tokens),
        hidden_size=backend.hidden_size,
        encodings=(Dense, *(() if output_head is None else (Hidden,)), TopK, Sampled, Candidates),
        limits=replace(limits, max_sequence_tokens=min(limits.max_sequence_tokens, backend.max_sequence_tokens)),
        compute_dtype=backend.compute_dtype,
        mode=backend.mode,
        version=__version__,
        tokens=backend.tokens,
    )
