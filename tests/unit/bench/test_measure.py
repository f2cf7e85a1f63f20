"""Quantiles and counts in memory that does not grow."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.bench.measure import QUANTILES, Recorder, Times
from stillhouse.bench.workload import Asked
from stillhouse.encodings import Dense
from stillhouse.errors import OverloadedError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.providers import Answer
from stillhouse.request import All, LogitsRequest, Sequence

TEACHER = FixtureTeacher(10)


@given(st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=300))
def test_quantiles_are_right_to_a_hundredth(seconds: list[float]) -> None:
    times = Times()
    for one in seconds:
        times.add(one)
    found = times.summary()
    assert found["mean"] == pytest.approx(np.mean(seconds))
    assert found["max"] == max(seconds)
    for name, share in QUANTILES.items():
        assert found[name] == pytest.approx(np.quantile(seconds, share, method="inverted_cdf"), rel=0.0101)


def test_no_times_have_no_summary() -> None:
    assert Times().summary() == {}


def test_a_time_of_zero_and_one_of_a_week_are_counted() -> None:
    times = Times()
    for seconds in (0.0, 604_800.0):
        times.add(seconds)
    assert times.summary()["max"] == 604_800.0


def asked(number: int, token: int) -> Asked:
    return Asked(number, "dense:f32", LogitsRequest((Sequence((1, token), positions=All()),), Dense()), is_repeat=False)


def answer_to(one: Asked) -> Answer:
    return TEACHER.answer(one.request)


def test_an_answer_unlike_the_first_to_its_request_is_found() -> None:
    recorder = Recorder(verify=True)
    one, other = asked(0, 1), asked(1, 2)
    for answer in (answer_to(one), answer_to(one), answer_to(other)):
        recorder.answered(one, answer, 0.1)
    recorder.answered(other, answer_to(other), 0.1)
    assert (recorder.compared, recorder.different) == (2, 1)


def test_verifying_remembers_so_many_and_no_more() -> None:
    recorder = Recorder(verify=True)
    answer = answer_to(asked(0, 1))
    for number in range(5000):
        recorder.answered(asked(number, 1), answer, 0.1)
    assert recorder._digests is not None
    assert sys.getsizeof(recorder._digests) < 1_000_000
    assert len(recorder._digests) < 5000
    assert recorder.compared == 0


def test_requests_tokens_and_positions_are_counted_overall_and_by_encoding() -> None:
    recorder = Recorder(verify=False)
    for number in range(3):
        recorder.answered(asked(number, 1), answer_to(asked(number, 1)), 0.5)
    for totals in (recorder.all, recorder.by_encoding["dense:f32"]):
        assert (totals.requests, totals.sequences, totals.tokens, totals.positions) == (3, 3, 6, 6)


def test_errors_are_counted_by_class_and_the_first_message_of_each_is_kept() -> None:
    recorder = Recorder(verify=False)
    for message in ("first", "second"):
        recorder.failed(OverloadedError(message))
    assert recorder.errors == {"OverloadedError": 2}
    assert recorder.messages == {"OverloadedError": "first"}
