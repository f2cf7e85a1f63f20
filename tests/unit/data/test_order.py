"""The global order: a bijection in every epoch, the same for ever, computed at any place alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.data.order import Order

FINGERPRINT = "00112233445566778899aabbccddeeff"


@pytest.mark.parametrize(
    ("num_samples", "seed", "start", "expected"),
    [
        (1, 0, 0, [0, 0, 0]),
        (2, 0, 0, [0, 1, 0, 1, 0, 1, 0, 1]),
        (10, 0, 0, [1, 3, 6, 8, 7, 5, 2, 9, 0, 4, 3, 7, 1, 5, 9, 8, 2, 6, 4, 0]),
        (101, -1, 50, [23, 56, 68, 5, 49, 67, 22, 32, 12, 53, 31, 98]),
        (10**6, 2**64, 12345678, [844487, 498592, 648778, 836237, 150758, 930424]),
    ],
)
def test_the_order_never_changes(num_samples: int, seed: int, start: int, expected: list[int]) -> None:
    assert Order(num_samples, seed, FINGERPRINT).sample_ids(start, len(expected)).tolist() == expected


@settings(deadline=None)
@given(
    st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 251, 256, 257, 1021, 4096, 4099])),
    st.integers(-(2**70), 2**70),
    st.integers(0, 10**6),
)
def test_every_epoch_holds_every_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    ids = Order(num_samples, seed, FINGERPRINT).sample_ids(epoch * num_samples, num_samples)
    assert sorted(ids.tolist()) == list(range(num_samples))


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 200), st.lists(st.integers(0, 40), max_size=6))
def test_slices_put_together_are_the_whole(num_samples: int, start: int, counts: list[int]) -> None:
    order = Order(num_samples, 3, FINGERPRINT)
    edges = [start]
    for count in counts:
        edges.append(edges[-1] + count)
    parts = [order.sample_ids(a, b - a) for a, b in pairwise(edges)]
    whole = order.sample_ids(start, edges[-1] - start)
    assert np.concatenate([*parts, np.empty(0, np.int64)]).tolist() == whole.tolist()
    assert whole.dtype == np.int64


def test_seed_data_and_epoch_each_give_another_order() -> None:
    orders = [
        Order(1000, 0, FINGERPRINT).sample_ids(0, 1000),
        Order(1000, 1, FINGERPRINT).sample_ids(0, 1000),
        Order(1000, 0, "other data").sample_ids(0, 1000),
        Order(1000, 0, FINGERPRINT).sample_ids(1000, 1000),
    ]
    assert len({order.tobytes() for order in orders}) == 4


def test_every_sample_comes_about_equally_often_at_every_place() -> None:
    order = Order(5, 0, FINGERPRINT)
    epochs = order.sample_ids(0, 5 * 4000).reshape(4000, 5)
    for place in range(5):
        counts = np.bincount(epochs[:, place], minlength=5)
        # Four degrees of freedom: above 23.5 once in ten thousand orders, and this one is fixed.
        assert ((counts - 800) ** 2 / 800).sum() < 23.5


def test_a_place_far_out_in_a_huge_order_is_found_at_once() -> None:
    ids = Order(10**12, 0, FINGERPRINT).sample_ids(7 * 10**12 - 5, 10)
    assert len(set(ids.tolist())) == 10
    assert ids.min() >= 0
    assert ids.max() < 10**12


def test_no_samples_or_a_negative_place_is_refused() -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1; got 0"):
        Order(0, 0, FINGERPRINT)
    with pytest.raises(ValueError, match="got -1 and 2"):
        Order(3, 0, FINGERPRINT).sample_ids(-1, 2)


def test_the_epoch_of_a_position_counts_from_0() -> None:
    assert [Order(3, 0, FINGERPRINT).epoch(position) for position in (0, 2, 3)] == [0, 0, 1]
