"""Runs of neighbours hold everything once, in order, within their bound."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.runs import runs_within


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_runs_hold_everything_once_within_the_bound_and_none_could_be_longer(sizes: list[int], most: int) -> None:
    runs = list(runs_within(sizes, most))
    assert [index for run in runs for index in range(run.start, run.stop)] == list(range(len(sizes)))
    for run in runs:
        assert run.stop - run.start == 1 or sum(sizes[run]) <= most
    for run, following in pairwise(runs):
        assert sum(sizes[run]) + sizes[following.start] > most
