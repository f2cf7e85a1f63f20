"""The teacher's answers, fetched ahead of the step: bounded in steps and bytes, the same whatever arrives first.

The unit is a micro-shard of a step, named by (step, shard). What is asked follows from the step, the rank and the
world size alone, so an answer that was fetched for a membership that has changed is dropped only if this worker no
longer needs it. Knows nothing of models, gradients or how workers find each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from stillhouse.payloads import Payload
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from student_worker.patience import Interrupted, PatientTeacher

__all__ = ["Interrupted", "Key", "PatientTeacher", "Piece", "Prefetcher"]

Key = tuple[int, int]
"""(step, micro-shard)."""

POLL_SECONDS = 0.1
"""How soon a wait for an answer notices that the run is to stop."""

REQUESTS_IN_FLIGHT = 4
"""Enough to hide a round trip behind several micro-shards; the teacher batches them together."""

SLOW_SECONDS = 10.0
"""A wait for one answer that is told of in the log, and again each time that it has doubled."""

_log = structlog.get_logger(__name__)


class Answerer(Protocol):
    """Answers a request, waiting where it must: a `PatientTeacher`, or what stands before one."""

    def answer(self, request: LogitsRequest, /) -> Answer:
        """Return the answer; the errors are those of `PatientTeacher`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One micro-shard's question: None where it has no row to ask about. `num_bytes` estimates the answer."""

    request: LogitsRequest | None
    num_bytes: int


@dataclass(slots=True)
class _Entry:
    piece: Piece
    future: Future[tuple[Payload, ...]] = field(default_factory=Future)


class Prefetcher:
    """Holds and fetches the answers of the coming micro-shards.

    Args:
        teacher: whom to ask.
        piece: makes the question of a micro-shard.
        max_bytes: answers held or in flight, those of the current step among them, which are always fetched.
        stopping: set when the run is to end.
    """

    def __init__(
        self,
        teacher: Answerer,
        piece: Callable[[Key], Piece],
        *,
        max_bytes: int,
        stopping: threading.Event,
    ) -> None:
        self._teacher = teacher
        self._piece = piece
        self._max_bytes = max_bytes
        self._stopping = stopping
        self._entries: dict[Key, _Entry] = {}
        self._wanted: list[Key] = []
        self._pool = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="prefetch")
        self.wait_seconds = 0.0
        """Time spent waiting for answers so far: what prefetch did not hide."""
        self.received_bytes = 0
        """What the teacher's answers have taken on their way here so far."""
        self._receiving = threading.Lock()
        self.on_wait: Callable[[float], None] | None = None
        """Told of every moment spent waiting for an answer, in seconds, while the wait lasts."""

    def plan(self, keys: Iterable[Key], current_step: int) -> None:
        """Say which micro-shards are needed next, in order; those of `current_step` are fetched without a bound.

        Answers that are no longer wanted are dropped.
        """
        self._wanted = list(keys)
        for key in self._entries.keys() - set(self._wanted):
            self._entries.pop(key).future.cancel()
        self._fill(current_step)

    def wait(self, keys: Iterable[Key]) -> None:
        """Wait until these answers are here, without taking them."""
        for key in keys:
            self._result(key)

    def take(self, key: Key) -> tuple[Payload, ...]:
        """Return an answer and let go of it; it is fetched now if it was not planned.

        Raises:
            TeacherError: there is no answer.
            GuardError: the teacher has changed.
            Interrupted: the run is to stop.
        """
        payloads = self._result(key)
        del self._entries[key]
        self._wanted = [wanted for wanted in self._wanted if wanted != key]
        self._fill(key[0])
        return payloads

    @property
    def num_held(self) -> int:
        """Answers that are here or on their way, one a micro-shard."""
        return len(self._entries)

    @property
    def held_bytes(self) -> int:
        """The estimated bytes of all answers that are here or on their way."""
        # A copy, since who reads a metric does so from another thread.
        return sum(entry.piece.num_bytes for entry in list(self._entries.values()))

    def close(self) -> None:
        """Stop fetching; requests in flight end by their own deadline."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fill(self, current_step: int) -> None:
        for key in self._wanted:
            if key in self._entries:
                continue
            piece = self._piece(key)
            if key[0] > current_step and self.held_bytes + piece.num_bytes > self._max_bytes:
                # In order, so that what is fetched follows from the plan alone, not from sizes that happen to fit.
                return
            self._submit(key, piece)

    def _submit(self, key: Key, piece: Piece) -> _Entry:
        entry = _Entry(piece)
        self._entries[key] = entry
        if piece.request is None:
            entry.future.set_result(())
        else:
            entry.future = self._pool.submit(self._fetch, piece.request)
        return entry

    def _fetch(self, request: LogitsRequest) -> tuple[Payload, ...]:
        answer = self._teacher.answer(request)
        with self._receiving:
            self.received_bytes += answer.num_bytes
        return answer.payloads

    def _result(self, key: Key) -> tuple[Payload, ...]:
        entry = self._entries.get(key) or self._submit(key, self._piece(key))
        began = seen = time.monotonic()
        told = SLOW_SECONDS
        try:
            while not (self._stopping.is_set() or entry.future.done()):
                # Not `result(timeout)`: a teacher's own timeout is of the same class as the end of this poll.
                wait([entry.future], timeout=POLL_SECONDS)
                seen = self._count(seen)
                if not entry.future.done() and seen - began >= told:
                    told *= 2
                    self._say_slow(key, seen - began)
            if entry.future.done():
                return entry.future.result()
            raise Interrupted
        finally:
            self._count(seen)

    def _count(self, since: float) -> float:
        """Count the wait since then; return the time."""
        now = time.monotonic()
        self.wait_seconds += now - since
        if self.on_wait is not None:
            self.on_wait(now - since)
        return now

    def _say_slow(self, key: Key, seconds: float) -> None:
        _log.warning(
            "teacher_is_slow",
            step=key[0] + 1,
            micro_shard=key[1],
            waited_seconds=round(seconds, 1),
            remedy="more teachers, a smaller encoding, or more prefetch_steps and prefetch_bytes",
        )
