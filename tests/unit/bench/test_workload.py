"""What a load asks follows from its seed and settings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from stillhouse.bench.workload import Asked, Workload, WorkloadSettings, parse_lengths
from stillhouse.encodings import Candidates, Dense, Encoding, TopK
from stillhouse.errors import ConfigurationError, EncodingNotOfferedError, InvalidRequestError, StillhouseError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.request import Explicit, Last

TEACHER = replace(FixtureTeacher(100).describe(), encodings=(Dense, TopK, Candidates))
SHORT = WorkloadSettings(lengths="1..20")


def some(settings: WorkloadSettings, seed: int = 0, count: int = 200) -> list[Asked]:
    workload = Workload(settings, TEACHER, seed)
    return list(islice(iter(workload.next, None), count))


def test_the_same_seed_asks_the_same_and_another_asks_otherwise() -> None:
    settings = replace(SHORT, repeat=0.3, positions="sample:4")
    assert some(settings, seed=5) == some(settings, seed=5) != some(settings, seed=6)


def test_every_request_is_one_that_the_teacher_takes() -> None:
    asked = some(replace(SHORT, batch=3, temperature=2.0, cache_mode="refresh"))
    for one in asked:
        one.request.check(TEACHER)
        assert (len(one.request.sequences), one.request.temperature, one.request.cache_mode) == (3, 2.0, "refresh")
    assert Counter(type(one.request.encoding) for one in asked).keys() == {Dense, TopK, Candidates}


def test_the_share_of_repeats_is_what_was_asked_for_and_a_repeat_is_an_earlier_request() -> None:
    asked = some(replace(SHORT, repeat=0.4), count=2000)
    assert 0.35 < sum(one.is_repeat for one in asked) / 2000 < 0.45
    first = {one.number: one.request for one in asked if not one.is_repeat}
    assert all(one.request == first[one.number] for one in asked)
    assert not any(one.is_repeat for one in some(SHORT))


@pytest.mark.parametrize(
    ("encodings", "expected"),
    [("top_k:8,top_k:8,dense:f16", {TopK(8), Dense("float16")}), ("candidates:1,5", {Candidates((1, 5))})],
)
def test_only_what_was_named_is_asked_for(encodings: str, expected: set[Encoding]) -> None:
    assert {one.request.encoding for one in some(replace(SHORT, encodings=encodings))} == expected


def test_positions_are_all_the_last_or_a_sample() -> None:
    def positions(text: str) -> list[object]:
        settings = replace(SHORT, positions=text, encodings="dense")
        return [one.request.sequences[0].positions for one in some(settings, count=50)]

    assert set(positions("last")) == {Last()}
    assert all(isinstance(one, Explicit) and 1 <= len(one.indices) <= 3 for one in positions("sample:3"))


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("7", 7, 7), ("3,9", 3, 9), ("2..5", 2, 5), ("lognormal:10:0.5", 1, 50), ("lognormal:1000:0", 50, 50)],
)
def test_lengths_stay_within_their_text_and_the_teachers_limit(text: str, low: int, high: int) -> None:
    generator = np.random.default_rng(0)
    drawn = [parse_lengths(text, 50)(generator) for _ in range(500)]
    assert min(drawn) >= low
    assert max(drawn) <= high
    assert {low, high} <= set(drawn) or text.startswith("lognormal:10:")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (WorkloadSettings(lengths="0..3"), ConfigurationError, "lengths"),
        (WorkloadSettings(lengths="5..3"), ConfigurationError, "lengths"),
        (WorkloadSettings(lengths="1..2..3"), ConfigurationError, "lengths"),
        (WorkloadSettings(lengths="many"), ConfigurationError, "lengths"),
        (WorkloadSettings(lengths="lognormal:0:1"), ConfigurationError, "lengths"),
        (WorkloadSettings(lengths="1..9999999"), ConfigurationError, "max_sequence_tokens"),
        (WorkloadSettings(positions="first"), ConfigurationError, "positions"),
        (WorkloadSettings(positions="sample:0"), ConfigurationError, "positions"),
        (WorkloadSettings(repeat=1.5), ConfigurationError, "repeat"),
        (WorkloadSettings(batch=0), ConfigurationError, "batch"),
        (WorkloadSettings(encodings="topk:3"), ConfigurationError, "topk"),
        (WorkloadSettings(encodings="top_k:101"), InvalidRequestError, "top_k.k"),
        (WorkloadSettings(encodings="sampled"), EncodingNotOfferedError, "Sampled"),
    ],
)
def test_a_load_that_cannot_be_is_refused_before_it_begins(
    settings: WorkloadSettings, error: type[StillhouseError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Workload(settings, TEACHER, seed=0)
