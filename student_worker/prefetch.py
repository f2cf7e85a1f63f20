"""The teacher's answers, fetched ahead of the step: bounded in steps and bytes, the same whatever arrives first.

The unit is a micro-shard of a step, named by (step, shard). What is asked follows from the step, the rank and the
world size alone, so an answer that was fetched for a membership that has changed is dropped only if this worker no
longer needs it. Knows nothing of models, gradients or how workers find each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential
from tenacity.nap import sleep_using_event

from stillhouse.errors import (
    FingerprintMismatchError,
    GuardError,
    OverloadedError,
    TeacherInternalError,
    TeacherTimeoutError,
    TeacherUnavailableError,
)
from stillhouse.payloads import Payload
from stillhouse.providers import Answer, TeacherLogitsProvider
from stillhouse.request import LogitsRequest

_R = TypeVar("_R")

Key = tuple[int, int]
"""(step, micro-shard)."""

AWAY = (OverloadedError, TeacherTimeoutError, TeacherUnavailableError, TeacherInternalError)
"""What waiting can mend. A teacher that answers otherwise would answer so again."""

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0
POLL_SECONDS = 0.1
"""How soon a wait for an answer notices that the run is to stop."""

REQUESTS_IN_FLIGHT = 4
"""Enough to hide a round trip behind several micro-shards; the teacher batches them together."""

_log = structlog.get_logger(__name__)


class Interrupted(Exception):  # noqa: N818 - nothing went wrong: the run was asked to stop
    """The run was asked to stop while it waited for the teacher."""


class PatientTeacher:
    """Asks a teacher, waiting with backoff while it is away.

    Args:
        teacher: whom to ask; used from several threads.
        wait_seconds: how long it may be away before the run gives up.
        stopping: set when the run is to end; ends every wait.
    """

    def __init__(self, teacher: TeacherLogitsProvider, wait_seconds: float, stopping: threading.Event) -> None:
        self._teacher = teacher
        self._wait_seconds = wait_seconds
        self._stopping = stopping

    def answer(self, request: LogitsRequest) -> Answer:
        """Return the answer.

        Raises:
            GuardError: the teacher is not the one that the run began with.
            TeacherError: it stayed away too long, or refuses the request.
            Interrupted: the run is to stop.
        """
        return self.call(lambda: self._teacher.answer(request))

    def call(self, ask: Callable[[], _R]) -> _R:
        """Return what `ask` does, with the waits and errors of `answer`."""
        retrying = Retrying(
            retry=retry_if_exception_type(AWAY),
            stop=stop_after_delay(self._wait_seconds),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
            before_sleep=self._before_sleep,
            sleep=sleep_using_event(self._stopping),
            reraise=True,
        )
        try:
            return retrying(ask)
        except FingerprintMismatchError as error:
            raise GuardError(f"the teacher has changed while the run went on: {error}") from error

    def _before_sleep(self, state: RetryCallState) -> None:
        if self._stopping.is_set():
            raise Interrupted
        error = state.outcome.exception() if state.outcome else None
        _log.warning(
            "waiting_for_teacher",
            attempt=state.attempt_number,
            waited_seconds=round(state.seconds_since_start or 0.0, 1),
            gives_up_after_seconds=self._wait_seconds,
            reason=str(error),
        )


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
        max_bytes: answers held or in flight beyond those of the current step.
        stopping: set when the run is to end.
    """

    def __init__(
        self,
        teacher: PatientTeacher,
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
    def held_bytes(self) -> int:
        """The estimated bytes of all answers that are here or on their way."""
        return sum(entry.piece.num_bytes for entry in self._entries.values())

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
        return self._teacher.answer(request).payloads

    def _result(self, key: Key) -> tuple[Payload, ...]:
        entry = self._entries.get(key) or self._submit(key, self._piece(key))
        began = time.monotonic()
        try:
            while not self._stopping.is_set():
                try:
                    return entry.future.result(timeout=POLL_SECONDS)
                except FutureTimeoutError:
                    # The teacher's own timeout is the same class: it is an answer, not the end of this poll.
                    if entry.future.done():
                        return entry.future.result()
            if entry.future.done():
                return entry.future.result()
            raise Interrupted
        finally:
            self.wait_seconds += time.monotonic() - began
