"""Sequences of all requests -> batches within a token budget, one after the other.

The longest-waiting sequence is always in the next batch, beside those whose lengths fit it best, so that nobody
starves and padding stays low. The model runs in one thread of its own, off the event loop. Knows nothing of models,
encodings, caches or bounds: what a batch is computed with is handed in, and who may queue is decided in `capacity`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Executor
from dataclasses import dataclass, field

import structlog

from stillhouse.encodings import Encoding
from stillhouse.errors import TeacherInternalError, TeacherUnavailableError
from stillhouse.request import Sequence
from teacher_service.metrics import Metrics

# How far into the queue a batch looks for sequences of a fitting length.
_LOOK_AHEAD = 512

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Computed:
    """The payload of one sequence as bytes, and where its time went. Seconds, of the whole batch in the model."""

    payload: bytes
    queue_seconds: float
    compute_seconds: float
    encode_seconds: float


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

ComputeBatch = Callable[[SequenceOf[Job]], SequenceOf[Outcome]]
"""Runs in the model's thread: one outcome for each job, in order."""

Remember = Callable[[SequenceOf[tuple[bytes, bytes]]], Awaitable[None]]
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
        max_batch_tokens: int,
        measure: Measure,
    ) -> None:
        self._compute = compute
        self._remember = remember
        self._executor = executor
        self._metrics = metrics
        self._max_batch_tokens = max_batch_tokens
        self._measure = measure
        self._waiting: deque[Job] = deque()
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
                await self._wake.wait()
                batch = self._take()
                if not batch:
                    self._wake.clear()
                    continue
                outcomes = await self._run_batch(batch)
                # One batch at most is being remembered while the next one computes.
                if finishing is not None:
                    await finishing
                finishing = asyncio.create_task(self._finish(batch, outcomes))
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

    def _take(self) -> list[Job]:
        # Whoever asked may have left: their work never reaches the model.
        living = [job for job in self._waiting if not job.result.done()]
        batch = choose_batch(living, self._max_batch_tokens)
        chosen = set(map(id, batch))
        self._waiting = deque(job for job in living if id(job) not in chosen)
        return batch

    async def _run_batch(self, batch: SequenceOf[Job]) -> SequenceOf[Outcome]:
        started = time.monotonic()
        for job in batch:
            self._metrics.queue_duration.observe(started - job.enqueued_at)
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._executor, self._compute, batch)
        except Exception:  # whatever a model raises ends its batch, not the service
            logger.exception("batch_failed", sequences=len(batch))
            fault = TeacherInternalError("the teacher failed to compute this batch; its log says more")
            outcomes = [fault] * len(batch)
        self._measure(sum(job.num_tokens for job in batch), time.monotonic() - started)
        return outcomes

    async def _finish(self, batch: SequenceOf[Job], outcomes: SequenceOf[Outcome]) -> None:
        """Remember first, so that a flight lands only when the cache answers in its place."""
        pairs = list(zip(batch, outcomes, strict=True))
        keep = [(job.key, done.payload) for job, done in pairs if job.key is not None and isinstance(done, Computed)]
        try:
            await self._remember(keep)
        except Exception:  # an answer that cannot be remembered is an answer all the same
            logger.exception("remember_failed", answers=len(keep))
        for job, outcome in pairs:
            if job.result.done():
                continue
            if isinstance(outcome, Computed):
                job.result.set_result(outcome)
            else:
                job.result.set_exception(outcome)


def choose_batch(waiting: Iterable[Job], max_batch_tokens: int) -> list[Job]:
    """Choose the next batch: the longest-waiting job, and those nearest to it in length while they fit.

    The rectangle of rows by longest sequence has at most `max_batch_tokens`, unless one sequence alone is longer.
    The batch is sorted by length.
    """
    window = [job for _, job in zip(range(_LOOK_AHEAD), waiting, strict=False)]
    if not window:
        return []
    oldest = window[0]
    batch, longest = [oldest], oldest.num_tokens
    for job in sorted(window[1:], key=lambda job: abs(job.num_tokens - oldest.num_tokens)):
        wider = max(longest, job.num_tokens)
        if (len(batch) + 1) * wider <= max_batch_tokens:
            batch.append(job)
            longest = wider
    return sorted(batch, key=lambda job: job.num_tokens)
