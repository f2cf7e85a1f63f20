"""The one way to an answer: cache, single flight, batch, compute, encode, remember.

Every door hands a `LogitsRequest` in and gets payload bytes back. Knows nothing of gRPC, HTTP or tokens of access.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from stillhouse.encodings import Candidates, Dense, Hidden, Sampled, TopK
from stillhouse.payload_header import Header
from stillhouse.payloads import OutputHead
from stillhouse.request import LogitsRequest, TeacherDescription
from stillhouse.version import __version__
from teacher_service.answering import CheckedRequest, EncodedAnswer, check_request
from teacher_service.backends import BackendDescription, TeacherBackend
from teacher_service.batching import Batcher, Computed, Job
from teacher_service.cache import AnswerCache
from teacher_service.capacity import Capacity, Place
from teacher_service.computing import BatchComputer, answers_fingerprint
from teacher_service.leading import Leader
from teacher_service.metrics import Metrics
from teacher_service.recall import Recall, keys_of, look_up
from teacher_service.request_notes import note_answer, note_request
from teacher_service.settings import TeacherSettings
from teacher_service.single_flight import SingleFlight, Ticket


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
        self._recall = None if cache is None else Recall(cache, metrics)
        self._metrics = metrics
        self._max_answer_bytes = settings.max_answer_bytes
        self._capacity = Capacity.of(settings, metrics, max_held_bytes=settings.max_held_bytes)
        self._flights: SingleFlight[tuple[str, bytes], Computed] = SingleFlight()
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
        self._leader = None if self._recall is None else Leader(self._recall, metrics, self._batcher.submit)
        self.running = asyncio.create_task(self._batcher.run(), name="batcher")
        """Ends only when `close` is called; a service whose teacher has ended otherwise cannot go on."""
        self.token_ids = backend.token_ids
        """Text to ids, as `TeacherBackend.token_ids`."""
        self.output_head = backend.output_head()
        """The head with which a caller rebuilds logits from HIDDEN; None where HIDDEN is not offered."""
        self.description = _describe(backend.describe(), self.output_head, settings)

    def check(self, request: LogitsRequest) -> CheckedRequest:
        """Check a request against this teacher.

        Raises:
            TeacherError: what it would be answered.
        """
        return check_request(request, self.description, self._max_answer_bytes)

    @asynccontextmanager
    async def answering(self, asked: CheckedRequest, *, is_looked_up: bool = False) -> AsyncIterator[EncodedAnswer]:
        """Answer what `check` has let pass: `async with teacher.answering(asked) as answer`; send the answer inside.

        The bytes count as held until the context ends, so that slow readers bound what the service takes on. One that
        is looked up already comes from a front process, which counts the look-up and shows the request as its own.

        Raises:
            OverloadedError: a bound is reached; it says when to come again.
            TeacherError: another of its kinds, when there is no answer.
        """
        note_request(asked.request)
        token_counts = [len(sequence.token_ids) for sequence in asked.request.sequences]
        with self._capacity.admitting(token_counts, answer_bytes=asked.most_bytes, is_shown=not is_looked_up) as place:
            answer = await self._answer(asked, place, is_looked_up=is_looked_up)
            note_answer(
                cache_hits=answer.cache_hits,
                queue_seconds=answer.queue_seconds,
                compute_seconds=answer.compute_seconds,
                encode_seconds=answer.encode_seconds,
            )
            yield answer

    async def _answer(self, asked: CheckedRequest, place: Place, *, is_looked_up: bool) -> EncodedAnswer:
        request, keys = asked.request, keys_of(asked.request, self.description)
        expected = dict(zip(keys, asked.headers, strict=True))
        answers = {} if is_looked_up else await look_up(self._recall, self._metrics, request.cache_mode, expected)
        missing = {key: index for index, key in enumerate(keys) if key not in answers}
        answers |= await self._compute(request, missing, expected, place)
        return EncodedAnswer(
            payloads=tuple(answers[key].payload for key in keys),
            fingerprint=self.description.fingerprint,
            cache_hits=sum(answers[key].from_cache for key in keys),
            queue_seconds=max((answer.queue_seconds for answer in answers.values()), default=0.0),
            # Sequences of one batch share their times, to the bit.
            compute_seconds=sum({answer.compute_seconds for answer in answers.values()}),
            encode_seconds=sum({answer.encode_seconds for answer in answers.values()}),
        )

    @property
    def cache_state(self) -> str:
        """`on`, `off`, or `paused: ...` and `refusing writes: ...` with the reason; for people."""
        return "off" if self._cache is None else self._cache.state

    async def close(self) -> None:
        """Give up what still waits, and end the batch that computes."""
        self._batcher.close()
        if self._leader is not None:
            await self._leader.close()
        self.running.cancel()
        await asyncio.wait({self.running})

    async def _compute(
        self, request: LogitsRequest, indices: dict[bytes, int], headers: dict[bytes, Header], place: Place
    ) -> dict[bytes, Computed]:
        """Return what is not remembered, each key computed once however many ask for it."""
        tickets: dict[bytes, Ticket[Computed]] = {}
        try:
            for key in indices:
                # Each cache mode has flights of its own: another's answer may be an old one, or not be remembered.
                tickets[key] = self._flights.board((request.cache_mode, key))
            jobs = {key: self._job(request, indices[key], key, t) for key, t in tickets.items() if t.is_first}
            self._metrics.joined.inc(len(tickets) - len(jobs))
            place.leave_all_but([job.num_tokens for job in jobs.values()])
            for job in jobs.values():
                job.result.add_done_callback(partial(self._leave_queue, job.num_tokens))
            self._start(request, jobs, headers)
            return {key: await ticket.wait() for key, ticket in tickets.items()}
        finally:
            for ticket in tickets.values():
                ticket.leave()

    def _start(self, request: LogitsRequest, jobs: dict[bytes, Job], headers: dict[bytes, Header]) -> None:
        """Queue jobs, those that another replica may compute too once they are claimed."""
        shared: dict[bytes, Job] = {}
        if self._leader is not None and request.cache_mode == "use":
            shared = {key: job for key, job in jobs.items() if self._is_kept(headers[key])}
            self._leader.start({job: headers[key] for key, job in shared.items()})
        self._batcher.submit(job for key, job in jobs.items() if key not in shared)

    def _is_kept(self, header: Header) -> bool:
        # A value that is never remembered would be waited for in vain.
        return self._cache is not None and header.size_bounds()[1] <= self._cache.max_value_bytes

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

    async def _remember(self, items: SequenceOf[tuple[bytes, bytes | memoryview]]) -> None:
        if self._cache is not None and items:
            await self._cache.set_many(items)


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
        device_kind=backend.device_kind,
    )
