"""In fixed shapes a row's rectangle follows from its own length, and no row is lost."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from teacher_service.backends.shapes import FittedShape, FixedShapes, Pass

LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=40)
SHAPES = st.builds(FixedShapes, st.sampled_from([1, 2, 64, 96, 128, 4096]), st.sampled_from([700, 1000, 1024]))


@given(lengths=LENGTHS, shapes=SHAPES)
def test_every_row_stands_once_in_a_rectangle_that_holds_it(lengths: list[int], shapes: FixedShapes) -> None:
    passes = list(shapes.passes(lengths))
    assert sorted(row for one in passes for row in one.rows) == list(range(len(lengths)))
    for one in passes:
        assert len(one.rows) <= one.height
        assert max(lengths[row] for row in one.rows) <= one.width <= shapes.max_width


@given(lengths=LENGTHS, shapes=SHAPES, data=st.data())
def test_a_rows_rectangle_follows_from_its_length_alone(
    lengths: list[int], shapes: FixedShapes, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(lengths) - 1))
    (alone,) = shapes.passes([lengths[index]])
    (among,) = [one for one in shapes.passes(lengths) if index in one.rows]
    assert (alone.height, alone.width) == (among.height, among.width)


@given(length=st.integers(1, 700), shapes=SHAPES)
def test_at_most_a_third_of_a_long_enough_row_is_padding(length: int, shapes: FixedShapes) -> None:
    (one,) = shapes.passes([length])
    assert one.width == length if one.height == 1 else length <= 16 or 3 * length > 2 * one.width
    assert one.height * one.width <= max(shapes.pass_tokens, length)


@given(lengths=LENGTHS, more=st.integers(1, 700), shapes=SHAPES)
def test_a_further_row_never_lowers_the_cost(lengths: list[int], more: int, shapes: FixedShapes) -> None:
    def cost(rows: list[int]) -> int:
        return sum(one.height * one.width for one in shapes.passes(rows))

    assert cost([*lengths, more]) >= cost(lengths)


def test_one_token_a_pass_is_one_row_without_padding() -> None:
    assert list(FixedShapes(1, 100).passes([5, 9, 5])) == [Pass((0,), 1, 5), Pass((2,), 1, 5), Pass((1,), 1, 9)]


def test_short_rows_share_a_rectangle_and_empty_ones_fill_it() -> None:
    passes = list(FixedShapes(64, 1000).passes([5, 20, 16, 40, 12, 3, 7]))
    assert passes == [Pass((0, 2, 4, 5), 4, 16), Pass((6,), 4, 16), Pass((1,), 2, 24), Pass((3,), 1, 40)]


def test_the_shapes_that_rows_share_can_be_tried_beforehand() -> None:
    shapes = FixedShapes(100, 1000)
    tried = {(one.height, one.width) for one in shapes.shared()}
    met = {(one.height, one.width) for length in range(1, 200) for one in shapes.passes([length]) if one.height > 1}
    assert tried == met == {(6, 16), (4, 24), (3, 32), (2, 48)}
    assert not list(FixedShapes(1, 1000).shared())


def test_a_fitted_batch_is_one_rectangle() -> None:
    assert list(FittedShape().passes([3, 9, 4])) == [Pass((0, 1, 2), 3, 9)]
    assert all(a <= b for a, b in pairwise([one.width for one in FixedShapes(64, 99).passes([50, 3, 20, 9])]))
