"""What the teacher takes on at once: requests, sequences, tokens, and bytes of answers, each with its bound.

A request is let in whole or refused at once, before anything is looked up, computed or allocated for it; the refusal
says when to come again. Knows nothing of what is asked, and nothing of who asks: what one caller may have in
flight is decided in `admission`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from functools import partial
from typing import Self

from prometheus_client import Gauge

from stillhouse.errors import OverloadedError
from teacher_service.metrics import Metrics
from teacher_service.settings import TeacherSettings

_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 10.0
# Where readers are what is waited for, the model's speed tells nothing.
_SHORTEST_PAUSE_FOR_READERS_SECONDS = 0.5
# Until a batch has been measured, nobody knows how fast the model is.
_FIRST_PAUSE_SECONDS = 1.0
# Those who were refused together should not come back together.
_JITTER = 0.25

# How much of the estimated speed the latest batch makes up.
_LATEST = 0.2


class _Room:
    """One bounded quantity and how much of it is taken."""

    def __init__(
        self,
        noun: str,
        bound: int,
        gauge: Gauge,
        reason: str,
        *,
        shortest_pause_seconds: float = _SHORTEST_PAUSE_FOR_READERS_SECONDS,
    ) -> None:
        self.noun = noun
        self.bound = bound
        self.reason = reason
        self.shortest_pause_seconds = shortest_pause_seconds
        self.taken = 0
        self._shown = 0
        # Asked when figures are read: what is taken changes dozens of times a request.
        gauge.set_function(lambda: self._shown)

    def add(self, amount: int, *, is_shown: bool = True) -> None:
        self.taken += amount
        if is_shown:
            self._shown += amount


class Capacity:
    """The bounds of one service; for one event loop."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        max_requests: int,
        max_queue_sequences: int,
        max_queue_tokens: int,
        max_held_bytes: int,
    ) -> None:
        self._shed = metrics.shed
        self._requests = _Room("requests in flight", max_requests, metrics.requests_in_flight, "requests")
        self._bytes = _Room("bytes of answers", max_held_bytes, metrics.held_bytes, "held_bytes")
        queue = partial(_Room, shortest_pause_seconds=_SHORTEST_PAUSE_SECONDS)
        self._sequences = queue("sequences in the queue", max_queue_sequences, metrics.queue_size, "queue_sequences")
        self._tokens = queue("tokens in the queue", max_queue_tokens, metrics.queue_tokens, "queue_tokens")
        self._batch_tokens = 0.0
        self._batch_seconds = 0.0

    @classmethod
    def of(cls, settings: TeacherSettings, metrics: Metrics, *, max_held_bytes: int) -> Self:
        """Return the bounds that settings name, of answers' bytes those of this process."""
        return cls(
            metrics,
            max_requests=settings.max_concurrent_requests,
            max_queue_sequences=settings.max_queue_sequences,
            max_queue_tokens=settings.max_queue_tokens,
            max_held_bytes=max_held_bytes,
        )

    @contextmanager
    def admitting(self, token_counts: SequenceOf[int], *, answer_bytes: int, is_shown: bool = True) -> Iterator[Place]:
        """Let in a request of sequences of these lengths and an answer of at most `answer_bytes`, until it is sent.

        One that is not shown is held to the bounds like any other; the gauges of requests and of their bytes leave it
        to the front process that it came through.

        Raises:
            OverloadedError: it does not fit any more; it says when to come again.
        """
        sequences, tokens = len(token_counts), sum(token_counts)
        for room, amount in (
            (self._requests, 1),
            (self._sequences, sequences),
            (self._tokens, tokens),
            (self._bytes, answer_bytes),
        ):
            self._check(room, amount)
        self._requests.add(1, is_shown=is_shown)
        self._bytes.add(answer_bytes, is_shown=is_shown)
        place = Place(self, sequences, tokens)
        try:
            yield place
        finally:
            place.leave_all()
            self._bytes.add(-answer_bytes, is_shown=is_shown)
            self._requests.add(-1, is_shown=is_shown)

    def change_queue(self, sequences: int, tokens: int) -> None:
        """Count so many more, or with negative numbers fewer, that wait or compute."""
        self._sequences.add(sequences)
        self._tokens.add(tokens)

    def measure(self, tokens: int, seconds: float) -> None:
        """Learn from a batch how fast the model is."""
        weight = _LATEST if self._batch_seconds else 1.0
        self._batch_tokens += weight * (tokens - self._batch_tokens)
        self._batch_seconds += weight * (seconds - self._batch_seconds)

    def _pause_seconds(self, room: _Room) -> float:
        """Return about how long it takes until half of what is queued is gone."""
        if not self._batch_seconds:
            return _FIRST_PAUSE_SECONDS
        half = self._tokens.taken / 2 * self._batch_seconds / max(self._batch_tokens, 1.0)
        return min(max(half, room.shortest_pause_seconds), _LONGEST_PAUSE_SECONDS)

    def _check(self, room: _Room, amount: int) -> None:
        if room.taken + amount <= room.bound:
            return
        self._shed.labels(room.reason).inc()
        jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads load, guards nothing
        raise OverloadedError(
            f"this teacher holds {room.taken} of at most {room.bound} {room.noun} and {amount} more do not fit; "
            "come again later",
            jitter * self._pause_seconds(room),
        )


class Place:
    """The queue places of one request, until they are handed on or given back."""

    def __init__(self, capacity: Capacity, sequences: int, tokens: int) -> None:
        self._capacity = capacity
        self._sequences = sequences
        self._tokens = tokens
        capacity.change_queue(sequences, tokens)

    def leave_all_but(self, token_counts: SequenceOf[int]) -> None:
        """Give back all but places for sequences of these lengths, which whoever computes them gives back."""
        sequences, tokens = self._sequences - len(token_counts), self._tokens - sum(token_counts)
        self._sequences = self._tokens = 0
        self._capacity.change_queue(-sequences, -tokens)

    def leave_all(self) -> None:
        """Give back what is still held; may be called again."""
        self.leave_all_but(())
