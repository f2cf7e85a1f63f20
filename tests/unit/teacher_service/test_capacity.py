"""What is taken on stays within its bounds, is all given back, and tells those refused when to come again."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import OverloadedError
from teacher_service.capacity import Capacity
from teacher_service.metrics import Metrics

BOUNDS = {"max_requests": 4, "max_queue_sequences": 8, "max_queue_tokens": 100, "max_held_bytes": 1000}
GAUGES = {
    "teacher_requests_in_flight": 4,
    "teacher_queue_size": 8,
    "teacher_queue_tokens": 100,
    "teacher_held_bytes": 1000,
}


def taken(metrics: Metrics) -> dict[str, float]:
    return {name: metrics.registry.get_sample_value(name) or 0.0 for name in GAUGES}


# The first look at a registry asks git for the commit: no time of the capacity's own.
@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(1, 40), max_size=4), st.integers(0, 600), st.booleans()), max_size=20))
def test_no_bound_is_ever_passed_and_all_is_given_back(requests: list[tuple[list[int], int, bool]]) -> None:
    metrics = Metrics()
    capacity = Capacity(metrics, **BOUNDS)
    with ExitStack() as held:
        for token_counts, answer_bytes, is_short in requests:
            before = taken(metrics)
            try:
                place = held.enter_context(capacity.admitting(token_counts, answer_bytes=answer_bytes))
            except OverloadedError:
                assert taken(metrics) == before
                continue
            assert all(taken(metrics)[name] <= bound for name, bound in GAUGES.items())
            if is_short:
                place.leave_all_but(token_counts[:1])
                capacity.change_queue(-len(token_counts[:1]), -sum(token_counts[:1]))
    assert set(taken(metrics).values()) == {0}


def test_a_request_is_let_in_whole_or_not_at_all() -> None:
    metrics = Metrics()
    capacity = Capacity(metrics, **BOUNDS)
    with capacity.admitting([50, 40], answer_bytes=10):
        before = taken(metrics)
        with pytest.raises(OverloadedError, match="holds 90 of at most 100 tokens in the queue and 11 more do not fit"):
            capacity.admitting([5, 6], answer_bytes=10).__enter__()
        assert taken(metrics) == before


def pause(capacity: Capacity) -> float:
    with pytest.raises(OverloadedError) as refusal:
        capacity.admitting([101], answer_bytes=0).__enter__()
    return refusal.value.retry_after_seconds


def test_the_pause_is_about_the_time_that_half_of_the_queue_takes() -> None:
    capacity = Capacity(Metrics(), **BOUNDS)
    assert 0.75 <= pause(capacity) <= 1.25  # nothing is known yet
    capacity.measure(10, 1.0)
    with capacity.admitting([100], answer_bytes=0):
        assert 0.75 * 5 <= pause(capacity) <= 1.25 * 5
        for _ in range(50):
            capacity.measure(100, 1.0)
        assert 0.75 * 0.5 <= pause(capacity) <= 1.25 * 0.5
        for _ in range(50):
            capacity.measure(1, 1e6)
        assert pause(capacity) <= 1.25 * 10
    assert pause(capacity) >= 0.75 * 0.05
