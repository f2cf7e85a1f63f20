"""Draws: unbiased, independent, and the same for the same logits."""

from __future__ import annotations

import hashlib
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.codec import encode_payload
from stillhouse.draws import content_key, distinct, draw, uniforms
from stillhouse.encode import encode_logits
from stillhouse.encodings import Sampled
from stillhouse.payloads import SampledCounts
from stillhouse.request import All, Explicit, From, Last, Positions, Sequence
from tests.asked import every_position


def logits(rows: int, width: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def sampled(
    x: Tensor, draws: int, *, seed: int = 0, temperature: float = 1.0, sequence: Sequence | None = None
) -> SampledCounts:
    sequence = sequence or every_position(len(x))
    payload = encode_logits(
        [x], Sampled(draws, seed), sequence=sequence, temperature=temperature, vocabulary_size=x.shape[1]
    )
    assert isinstance(payload, SampledCounts)
    return payload


def histogram(payload: SampledCounts, width: int) -> Tensor:
    """`[P, N]`: how often each id was drawn at each position."""
    rows = torch.arange(payload.num_positions).repeat_interleave(payload.offsets.diff())
    table = torch.zeros(payload.num_positions, width, dtype=torch.int64)
    return table.index_put((rows, payload.token_ids.long()), payload.counts.long())


def chi_square(observed: Tensor, expected: Tensor) -> tuple[float, int]:
    """The statistic and its degrees of freedom, with all bins that expect less than 5 poured together."""
    rare = expected < 5
    if rare.any() and expected[rare].sum() < 5:
        rare[expected.argmax()] = True
    bins = [(float(o), float(e)) for o, e in zip(observed[~rare], expected[~rare], strict=True)]
    if rare.any():
        bins.append((float(observed[rare].sum()), float(expected[rare].sum())))
    return sum((o - e) ** 2 / e for o, e in bins), len(bins) - 1


def most_that_chance_gives(freedom: int) -> float:
    """What a chi-square variable passes once in about a million (Laurent and Massart 2000, lemma 1, x = 14)."""
    return freedom + 2 * math.sqrt(14 * freedom) + 2 * 14


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 200), st.integers(0, 2**32), st.sampled_from([0.1, 3.0, 30.0]), st.sampled_from([0.5, 1.0, 2.0, 4.0])
)
def test_every_id_is_drawn_as_often_as_it_is_likely(width: int, seed: int, scale: float, temperature: float) -> None:
    draws = 65_535
    x = logits(1, width, seed, scale)
    counts = histogram(sampled(x, draws, seed=seed, temperature=temperature), width)[0]
    expected = draws * torch.softmax(x[0].double() / temperature, 0)
    statistic, freedom = chi_square(counts, expected)
    assert statistic <= most_that_chance_gives(freedom)


def test_the_chi_square_test_would_notice_a_slight_bias() -> None:
    draws, x = 65_535, logits(1, 50)
    counts = histogram(sampled(x, draws, temperature=1.0), 50)[0]
    statistic, freedom = chi_square(counts, draws * torch.softmax(x[0].double() / 1.1, 0))
    assert statistic > most_that_chance_gives(freedom)


def test_the_mean_over_many_positions_is_the_distribution() -> None:
    # The draws of one position stand in one stream, those of many in many.
    rows, draws, width = 4000, 16, 30
    x = logits(1, width, scale=2.0).expand(rows, -1)
    counts = histogram(sampled(x, draws), width).sum(0)
    statistic, freedom = chi_square(counts, rows * draws * torch.softmax(x[0].double(), 0))
    assert statistic <= most_that_chance_gives(freedom)


@pytest.mark.parametrize("other", ["position", "seed", "token", "segments"])
def test_draws_of_other_positions_seeds_and_contents_are_independent(other: str) -> None:
    # Two independent draws of 1 among 10 form 100 equally likely pairs.
    rows, width = 20_000, 10
    x = torch.zeros(rows, width)
    here = every_position(rows)
    there = {
        "position": here,
        "seed": here,
        "token": Sequence((*here.token_ids[:-1], 7), positions=All()),
        "segments": Sequence(here.token_ids, (1, rows - 1), positions=All()),
    }[other]
    first = histogram(sampled(x, 1, sequence=here), width).argmax(1)
    second = histogram(sampled(x, 1, sequence=there, seed=int(other == "seed")), width).argmax(1)
    if other == "position":
        first, second = first[::2], second[1::2]
    pairs = torch.bincount(first * width + second, minlength=width**2)
    statistic, freedom = chi_square(pairs, torch.full((width**2,), len(first) / width**2))
    assert statistic <= most_that_chance_gives(freedom)


@pytest.mark.parametrize("positions", [Last(), From(3), Explicit((1, 4, 6)), Explicit((5,))], ids=repr)
def test_a_position_has_the_same_draws_whatever_else_is_asked_for(positions: Positions) -> None:
    x = logits(7, 40)
    every = histogram(sampled(x, 30), 40)
    some = Sequence(tuple(range(7)), positions=positions)
    indices = list(some.position_indices())
    assert histogram(sampled(x[indices], 30, sequence=some), 40).equal(every[indices])


def test_one_document_has_the_same_draws_named_or_not() -> None:
    x = logits(4, 40)
    named = Sequence((0, 1, 2, 3), (4,), positions=All())
    assert encode_payload(sampled(x, 30, sequence=named)) == encode_payload(sampled(x, 30))


def test_fewer_draws_are_the_first_of_more() -> None:
    key = content_key(every_position(3), seed=5)
    assert uniforms(key, range(3), 10).equal(uniforms(key, range(3), 99)[:, :10])


def test_uniform_numbers_are_the_hash_that_the_format_says() -> None:
    sequence = Sequence((5, 70_000, 7), (1, 2))
    content = struct.pack("<QIIIIII", 2**64 - 1, 2, 1, 2, 5, 70_000, 7)
    key = hashlib.blake2b(content, digest_size=16, person=b"stillhouse draws").digest()
    assert content_key(sequence, seed=2**64 - 1) == key
    words = struct.unpack("<3Q", hashlib.shake_128(key + struct.pack("<Q", 2)).digest(24))
    assert uniforms(key, [2], 3).tolist() == [[(word >> 11) / 2**53 for word in words]]


def reference_draw(weights: list[float], u: float) -> int:
    """The tree of sums as docs/payload-format.md describes it, one number at a time."""
    levels = [weights]
    while len(levels[-1]) > 1:
        below, half = levels[-1], (len(levels[-1]) + 1) // 2
        levels.append([below[i] + below[half + i] if half + i < len(below) else below[i] for i in range(half)])
    point, node, total = u * levels[-1][0], 0, levels[-1][0]
    for level, above in zip(levels[-2::-1], levels[::-1], strict=False):
        left = level[node]
        if point >= left and total > left:
            point, node = point - left, node + len(above)
        total = level[node]
    return node


@settings(deadline=None)
@given(st.data())
def test_a_draw_is_the_leaf_that_the_format_says(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 40))
    # Differences of powers of two, whose exponentials differ by far less than the distances of the points.
    values = st.sampled_from([-math.inf, -1e4, -40.0, -1.0, 0.0, 1.0, 2.5])
    row = data.draw(st.lists(values, min_size=width, max_size=width).filter(lambda row: max(row) > -math.inf))
    points = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
    ids, _ = draw(torch.tensor([row]), torch.tensor([points], dtype=torch.float64), 1.0)
    weights = [math.exp(value - max(row)) for value in row]
    exact = [reference_draw(weights, u) for u in points]
    nudged = [{reference_draw(weights, min(max(u + d, 0), 1 - 2**-53)) for d in (-1e-12, 0, 1e-12)} for u in points]
    assert all(a == b or a in near for a, b, near in zip(ids[0].tolist(), exact, nudged, strict=True))


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4) | st.floats(-1, 1) | st.just(-math.inf), min_size=1, max_size=70)
    | st.lists(st.floats(-1, 1) | st.just(-math.inf), min_size=1, max_size=70),
    st.sampled_from([1e-3, 0.5, 1.0, 4.0, 1e6]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_an_id_that_cannot_be_is_never_drawn(row: list[float], temperature: float, dtype: torch.dtype) -> None:
    x = torch.tensor([row], dtype=dtype)
    if x.max() == -math.inf:
        return
    # The ends of every branch are where rounding could lead astray.
    ends = torch.tensor([[0.0, 2.0**-53, 0.5, 1 - 2.0**-53, *(torch.rand(60).tolist())]], dtype=torch.float64)
    ids, entropy = draw(x, ends, temperature)
    weights = torch.softmax(x.double() / temperature, 1)
    assert (weights.gather(1, ids) > 0).all()
    assert 0 <= entropy.item() <= math.log(len(row)) + 1e-6


# In float64, 1 - 2^-53 times the sum of these weights is the sum: a walk that only compared would end beside the tree.
ROUNDED_UP = (
    [0.0, -2.6, -0.4, -math.inf, 1.9],
    [-0.5, -0.5, 1.8, -2.8, 2.0],
    [-math.inf, -0.3, -1.1, -math.inf, 0.1],
    [0.1, 0.8, -math.inf, -math.inf, -1.4],
)


@pytest.mark.parametrize("row", ROUNDED_UP, ids=repr)
def test_a_point_that_is_rounded_up_to_the_sum_of_all_falls_upon_an_id_that_can_be(row: list[float]) -> None:
    ids, _ = draw(torch.tensor([row]), torch.tensor([[1 - 2.0**-53]], dtype=torch.float64), 1.0)
    assert row[int(ids)] > -math.inf


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 3000.0])
def test_the_entropy_is_that_of_float64(temperature: float, scale: float) -> None:
    x = logits(6, 3000, scale=scale)
    x[2, 5:] = -math.inf
    p = torch.softmax(x.double() / temperature, 1)
    expected = torch.special.entr(p).sum(1)
    entropy = sampled(x, 3, temperature=temperature).entropy
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-6, atol=1e-12)


def test_certainty_has_no_entropy_and_one_id() -> None:
    x = torch.full((1, 500), -1e4)
    x[0, 77] = 1e4
    payload = sampled(x, 65_535)
    assert (payload.token_ids.tolist(), payload.counts.tolist(), payload.entropy.tolist()) == ([77], [65_535], [0.0])


def test_the_largest_number_of_draws_has_bytes() -> None:
    payload = sampled(logits(3, 900), 65_535)
    assert histogram(payload, 900).sum(1).tolist() == [65_535] * 3
    assert encode_payload(payload)


def test_ids_beyond_n_are_never_drawn_and_have_no_weight() -> None:
    x = logits(5, 60)
    beyond = torch.cat([x, torch.full((5, 7), 50.0)], dim=1)
    payload = encode_logits([beyond], Sampled(40), sequence=every_position(5), temperature=1.0, vocabulary_size=60)
    assert encode_payload(payload) == encode_payload(sampled(x, 40))


def test_distinct_ids_come_rising_with_their_counts() -> None:
    entries, ids, counts = distinct(torch.tensor([[5, 2, 5], [9, 9, 9], [1, 0, 7]]))
    assert entries.tolist() == [2, 1, 3]
    assert ids.tolist() == [2, 5, 9, 0, 1, 7]
    assert counts.tolist() == [1, 2, 3, 1, 1, 1]
    assert ids.dtype == counts.dtype == torch.int32
