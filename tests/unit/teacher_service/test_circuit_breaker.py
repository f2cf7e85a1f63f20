"""When a failing dependency is left alone, and when it is tried again."""

from __future__ import annotations

from teacher_service.circuit_breaker import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    CircuitBreaker,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _open(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(clock)
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.allows_call()
        breaker.failed()
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = CircuitBreaker(Clock())
    for _ in range(5):
        for _ in range(FAILURES_TO_OPEN - 1):
            breaker.failed()
        breaker.succeeded()
    assert not breaker.is_open
    assert breaker.allows_call()


def test_while_open_one_call_tries_after_each_pause() -> None:
    clock = Clock()
    breaker = _open(clock)
    assert breaker.is_open
    assert not breaker.allows_call()
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.allows_call()
    assert not breaker.allows_call()


def test_a_success_closes_it() -> None:
    clock = Clock()
    breaker = _open(clock)
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.allows_call()
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.allows_call()


def test_the_pause_doubles_up_to_its_bound() -> None:
    clock = Clock()
    breaker = _open(clock)
    pauses = []
    for _ in range(12):
        before = clock.now
        while not breaker.allows_call():
            clock.now += FIRST_PAUSE_SECONDS
        pauses.append(clock.now - before)
        breaker.failed()
    assert pauses[:4] == [FIRST_PAUSE_SECONDS * factor for factor in (1, 2, 4, 8)]
    assert max(pauses) == LONGEST_PAUSE_SECONDS


def test_a_try_that_never_reports_does_not_keep_it_open_for_good() -> None:
    clock = Clock()
    breaker = _open(clock)
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.allows_call()
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.allows_call()


def test_failures_of_calls_from_before_it_opened_lengthen_no_pause() -> None:
    clock = Clock()
    breaker = _open(clock)
    for _ in range(50):
        breaker.failed()
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.allows_call()
