"""Batches keep their budget, starve nobody, and carry little padding."""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf

from hypothesis import given
from hypothesis import strategies as st

from teacher_service.batch_choice import LOOK_AHEAD, PaddedTokens, choose_batch, rectangle


def in_buckets(lengths: SequenceOf[int]) -> int:
    """Cost of a backend that runs rows of 16, 32, 64, ... tokens, four at a time."""
    widths = [max(16, 1 << (length - 1).bit_length()) for length in lengths]
    return sum(-(-widths.count(width) // 4) * 4 * width for width in set(widths))


lengths_of_many = st.lists(st.integers(1, 300), max_size=80)
costs = st.sampled_from([rectangle, in_buckets])


@given(lengths_of_many, st.integers(1, 2000), costs)
def test_every_job_goes_once_the_oldest_always_and_the_budget_is_kept(
    lengths: list[int], budget: int, cost: PaddedTokens
) -> None:
    waiting = list(enumerate(lengths))
    gone: list[int] = []
    while waiting:
        chosen, _ = choose_batch([length for _, length in waiting], budget, cost)
        assert 0 in chosen
        assert len(set(chosen)) == len(chosen)
        sizes = [waiting[index][1] for index in chosen]
        assert sizes == sorted(sizes)
        assert len(chosen) == 1 or cost(sizes) <= budget
        gone += [waiting[index][0] for index in chosen]
        waiting = [one for index, one in enumerate(waiting) if index not in set(chosen)]
    assert sorted(gone) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(1, 2000))
def test_what_fills_a_batch_up_is_hardly_ever_padding(lengths: list[int], budget: int) -> None:
    chosen, _ = choose_batch(lengths, budget)
    sizes = [lengths[index] for index in chosen]
    assert rectangle(sizes) - sum(sizes) <= budget / 8


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(1, 2000))
def test_a_batch_that_is_not_full_holds_all_who_wait(lengths: list[int], budget: int) -> None:
    chosen, is_full = choose_batch(lengths, budget)
    assert is_full or len(chosen) == len(lengths)


def test_who_is_behind_the_look_ahead_waits_for_a_later_batch() -> None:
    chosen, is_full = choose_batch([10, *[100] * LOOK_AHEAD, 10], 1000)
    assert LOOK_AHEAD + 1 not in chosen
    assert is_full


def test_a_batch_prefers_fitting_lengths() -> None:
    lengths = [10, 100, 11, 90, 9]
    assert [lengths[index] for index in choose_batch(lengths, 60)[0]] == [9, 10, 11]


def test_nobody_waits_at_all() -> None:
    assert choose_batch([], 10) == ([], False)


def test_padding_is_low_in_a_busy_mix_of_lengths() -> None:
    lengths = random.Random(4)
    waiting = [int(lengths.lognormvariate(5, 1)) % 2000 + 1 for _ in range(3000)]
    padded = total = 0
    while waiting:
        chosen, _ = choose_batch(waiting, 4096)
        sizes = [waiting[index] for index in chosen]
        padded, total = padded + rectangle(sizes) - sum(sizes), total + sum(sizes)
        waiting = [one for index, one in enumerate(waiting) if index not in set(chosen)]
    assert padded / (padded + total) < 0.05


def test_rows_of_one_bucket_fill_its_pass() -> None:
    lengths = [10, 200, 12, 14, 11, 13]
    chosen, _ = choose_batch(lengths, 64, in_buckets)
    assert sorted(chosen) == [0, 2, 4, 5]
