"""Sequences of all requests -> batches within a token budget, one after the other.

What goes together is chosen in `batch_choice`. The model runs in one thread of its own, off the event loop. Knows
nothing of models, encodings, caches or bounds: what a batch is computed with is handed in, and who may queue is decided
in `capacity`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Executor
from dataclasses import dataclass, field

import structlog

from stillhouse.encodings import Encoding
from stillhouse.errors import TeacherInternalError, TeacherUnavailableError
from stillhouse.request import Sequence
from teacher_service.batch_choice import LOOK_AHEAD, PaddedTokens, choose_batch, rectangle
from teacher_service.metrics import Metrics

# From batch to batch: a crowd that has gone is forgotten after a dozen.
_CROWD_DECAY = 0.8

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Computed:
    """The payload of one sequence as bytes, and where its time went. Seconds, of the whole batch in the model.

    One that another process has computed meanwhile, and the cache remembers, is `from_cache`.
    """

    payload: bytes | memoryview
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    encode_seconds: float = 0.0
    from_cache: bool = False


@dataclass(eq=False, slots=True)
class Job:
    """One sequence to compute. `result` is cancelled when nobody waits any more; `key` None keeps nothing."""

    sequence: Sequence
    encoding: Encoding
    temperature: float
    vocabulary_size: int
    key: bytes | None
    result: asyncio.Future[Computed]
    enqueued_at: float = field(default_factory=time.monotonic)

    @property
    def num_tokens(self) -> int:
        """Tokens of its sequence."""
        return len(self.sequence.token_ids)


Outcome = Computed | Exception
Outcomes = SequenceOf[tuple[Job, Outcome]]

ComputeBatch = Callable[[SequenceOf[Job]], SequenceOf[Outcome]]
"""Runs in the model's thread: one outcome for each job, in order."""

Budget = Callable[[], int]
"""The most padded tokens of a batch now: it may shrink when memory runs out."""

Remember = Callable[[SequenceOf[tuple[bytes, bytes | memoryview]]], Awaitable[None]]
"""Keeps keys and payloads."""

Measure = Callable[[int, float], None]
"""Is told of each batch's tokens and seconds."""


class Batcher:
    """A queue and the loop that empties it, batch by batch; for one event loop."""

    def __init__(
        self,
        compute: ComputeBatch,
        remember: Remember,
        executor: Executor,
        metrics: Metrics,
        *,
        budget: Budget,
        padded_tokens: PaddedTokens = rectangle,
        max_queue_delay_seconds: float = 0.0,
        measure: Measure = lambda _tokens, _seconds: None,
    ) -> None:
        self._compute = compute
        self._remember = remember
        self._executor = executor
        self._metrics = metrics
        self._budget = budget
        self._padded_tokens = padded_tokens
        self._max_queue_delay_seconds = max_queue_delay_seconds
        self._measure = measure
        self._waiting: list[Job] = []
        self._crowd = 0.0  # about how many sequences were lately there at once
        self._wake = asyncio.Event()
        self._closed = False

    def submit(self, jobs: Iterable[Job]) -> None:
        """Queue all of the jobs, or none.

        Raises:
            TeacherUnavailableError: the service drains.
        """
        if self._closed:
            raise TeacherUnavailableError("the teacher is draining; ask another, or this one once it is back")
        self._waiting.extend(jobs)
        self._wake.set()

    async def run(self) -> None:
        """Compute batches until cancelled."""
        finishing: asyncio.Task[None] | None = None
        try:
            while True:
                outcomes = await self._run_batch(await self._next_batch())
                # One batch at most is being remembered while the next one computes.
                if finishing is not None:
                    await finishing
                finishing = asyncio.create_task(self._finish(outcomes))
        finally:
            if finishing is not None:
                await finishing

    def close(self) -> None:
        """Refuse what comes, and give up what still waits."""
        self._closed = True
        for job in self._waiting:
            if not job.result.done():
                job.result.set_exception(TeacherUnavailableError("the teacher was stopped before it could answer"))
        self._waiting.clear()

    async def _next_batch(self) -> list[Job]:
        """Wait for jobs, and at most so long for more of them while the batch is not full.

        Only for as many as were lately there at once: those whom the model has just answered are about to ask again,
        and callers that once took turns would take turns for good, while a lone one has nobody to wait for.
        """
        idle_since = time.monotonic()
        while True:
            self._wake.clear()
            # Whoever asked may have left: their work never reaches the model.
            self._waiting = [job for job in self._waiting if not job.result.done()]
            lengths = [job.num_tokens for job in self._waiting[:LOOK_AHEAD]]
            chosen, is_full = choose_batch(lengths, self._budget(), self._padded_tokens)
            patience = None
            if chosen:
                since = max(self._waiting[0].enqueued_at, idle_since)
                patience = since + self._max_queue_delay_seconds - time.monotonic()
                if is_full or patience <= 0 or len(self._waiting) >= self._crowd:
                    batch, taken = [self._waiting[index] for index in chosen], set(chosen)
                    self._waiting = [job for index, job in enumerate(self._waiting) if index not in taken]
                    return batch
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._wake.wait()

    async def _run_batch(self, batch: SequenceOf[Job]) -> Outcomes:
        started = time.monotonic()
        for job in batch:
            self._metrics.queue_duration.observe(started - job.enqueued_at)
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._executor, self._compute_living, batch)
        except Exception:  # whatever a model raises ends its batch, not the service
            logger.exception("batch_failed", sequences=len(batch))
            fault = TeacherInternalError("the teacher failed to compute this batch; its log says more")
            outcomes = [(job, fault) for job in batch]
        self._crowd = max(len(batch) + len(self._waiting), _CROWD_DECAY * self._crowd)
        self._measure(sum(job.num_tokens for job, _ in outcomes), time.monotonic() - started)
        return outcomes

    def _compute_living(self, batch: SequenceOf[Job]) -> Outcomes:
        """Compute in the model's thread, which may have been busy: those who have left meanwhile are left out."""
        living = [job for job in batch if not job.result.done()]
        return list(zip(living, self._compute(living), strict=True)) if living else []

    async def _finish(self, outcomes: Outcomes) -> None:
        """Remember first, so that a flight lands only when the cache answers in its place."""
        keep = [(job.key, done.payload) for job, done in outcomes if job.key is not None and isinstance(done, Computed)]
        try:
            await self._remember(keep)
        except Exception:  # an answer that cannot be remembered is an answer all the same
            logger.exception("remember_failed", answers=len(keep))
        for job, outcome in outcomes:
            if job.result.done():
                continue
            if isinstance(outcome, Computed):
                job.result.set_result(outcome)
            else:
                job.result.set_exception(outcome)
