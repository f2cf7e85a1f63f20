# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Rows of a teacher's logits -> what an answer keeps of them, as Triton programs with an instance for each row.

Nothing that stands beside a row has a part in its numbers, as `stillhouse.row_math` asks. Logits are read in their own
dtype.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""Shift of a row of -inf alone, float32's least: a difference of two infinities would be a NaN."""

NO_WEIGHT = tl.constexpr(-800.0)
"""As in `stillhouse.draws`: e to this is 0, and what is times its logarithm is 0 too."""


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def choose_rows(logits, stride, lasts, num_above, chosen, width, k, BLOCK: tl.constexpr) -> None:
    """Write the ids of the k largest logits of one row, rising; among equals of the k-th the lower ids.

    `lasts` `[P]` float32 is the k-th largest logit, `num_above` `[P]` int64 how many are larger, `chosen` `[P, k]`
    int64.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    chosen += row * k
    last = tl.load(lasts + row)
    wanted = k - tl.load(num_above + row).to(tl.int32)
    equal_before = tl.full((), 0, tl.int32)
    chosen_before = tl.full((), 0, tl.int32)
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(logits + ids, mask=ids < width, other=float("-inf")).to(tl.float32)
        is_equal = ((x == last) & (ids < width)).to(tl.int32)
        rank = equal_before + tl.cumsum(is_equal, 0)
        is_chosen = (x > last) | ((is_equal != 0) & (rank <= wanted))
        place = chosen_before + tl.cumsum(is_chosen.to(tl.int32), 0) - 1
        tl.store(chosen + place, ids.to(tl.int64), mask=is_chosen)
        equal_before += tl.sum(is_equal, 0)
        chosen_before += tl.sum(is_chosen.to(tl.int32), 0)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def describe_rows(
    logits,
    stride,
    named,
    is_named,
    statistics,
    width,
    num_named,
    per_t,
    TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
    NAMED_BLOCK: tl.constexpr,
) -> None:
    """Write how much the named ids of one row and all its others weigh, at T = 1 and at T, `[P, 4]` float32.

    They are log-normaliser and log of the tail's mass, twice. `named` `[P, K]` int64 are distinct; `is_named`
    `[P, width]` uint8 is 1 there.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    named += row * num_named
    is_named += row * width
    tail_max = tl.full((), LOWEST, tl.float32)
    plain_sums = tl.zeros((BLOCK,), tl.float32)
    cooled_sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(logits + ids, mask=ids < width, other=float("-inf")).to(tl.float32)
        x = tl.where(tl.load(is_named + ids, mask=ids < width, other=0) != 0, float("-inf"), x)
        largest = tl.maximum(tail_max, tl.max(x, 0))
        rise = largest - tail_max
        below = x - largest
        plain_sums = plain_sums * tl.exp(-rise) + tl.exp(below)
        if TEMPERED:
            cooled_sums = cooled_sums * tl.exp(-rise * per_t) + tl.exp(below * per_t)
        tail_max = largest
    tail_plain = tl.sum(plain_sums.to(tl.float64), 0)
    tail_cooled = tail_plain
    if TEMPERED:
        tail_cooled = tl.sum(cooled_sums.to(tl.float64), 0)
    top = tail_max.to(tl.float64)
    for start in range(0, num_named, NAMED_BLOCK):
        places = start + tl.arange(0, NAMED_BLOCK)
        kept = tl.load(named + places, mask=places < num_named, other=0)
        top = tl.maximum(top, tl.max(tl.load(logits + kept, mask=places < num_named, other=float("-inf")), 0))
    # Of a tail that is not there (every id is named) the largest logit is no number to raise e to.
    below = tl.maximum(tail_max - top, LOWEST)
    plain = tail_plain * tl.exp(below)
    cooled = tail_cooled * tl.exp(below * per_t)
    for start in range(0, num_named, NAMED_BLOCK):
        places = start + tl.arange(0, NAMED_BLOCK)
        kept = tl.load(named + places, mask=places < num_named, other=0)
        h = tl.load(logits + kept, mask=places < num_named, other=float("-inf")).to(tl.float64) - top
        plain += tl.sum(tl.exp(h), 0)
        cooled += tl.sum(tl.exp(h * per_t), 0)
    statistics += row * 4
    tl.store(statistics, (top + tl.log(plain)).to(tl.float32))
    tl.store(statistics + 1, (below + tl.log(tail_plain) - tl.log(plain)).to(tl.float32))
    tl.store(statistics + 2, (top * per_t + tl.log(cooled)).to(tl.float32))
    tl.store(statistics + 3, (below * per_t + tl.log(tail_cooled) - tl.log(cooled)).to(tl.float32))


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def draw_rows(
    logits,
    stride,
    temperatures,
    uniforms,
    trees,
    tree_size,
    starts,
    widths,
    num_levels,
    surprises,
    drawn,
    entropies,
    width,
    num_draws,
    BLOCK: tl.constexpr,
    DRAWS_BLOCK: tl.constexpr,
) -> None:
    """Write the ids that the uniform numbers of one row draw, and its entropy: `stillhouse.draws.draw` says how.

    `trees` `[P, tree_size]` float64 is room for a row's levels one after another, `starts` and `widths` `[L]` int32
    where they begin and how wide they are, `surprises` `[P, width]` float64 room for the entropy's sum;
    `temperatures` `[1]` float64, since a number by itself would be float32.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    tree = trees + row * tree_size
    surprise = surprises + row * width
    temperature = tl.load(temperatures)
    largest = tl.full((), float("-inf"), tl.float32)
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(logits + ids, mask=ids < width, other=float("-inf")).to(tl.float32)
        largest = tl.maximum(largest, tl.max(x, 0))
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(logits + ids, mask=ids < width, other=float("-inf")).to(tl.float64) - largest.to(tl.float64)
        log_weight = tl.maximum(x / temperature, NO_WEIGHT)
        weight = tl.exp(log_weight)
        tl.store(tree + ids, weight, mask=ids < width)
        tl.store(surprise + ids, log_weight * weight, mask=ids < width)
    for level in range(1, num_levels):
        # What is read below, other lanes have written.
        tl.debug_barrier()
        below = tree + tl.load(starts + level - 1)
        above = tree + tl.load(starts + level)
        wide = tl.load(widths + level - 1)
        half = tl.load(widths + level)
        for start in range(0, half, BLOCK):
            nodes = start + tl.arange(0, BLOCK)
            left = tl.load(below + nodes, mask=nodes < half, other=0.0)
            right = tl.load(below + half + nodes, mask=nodes < wide - half, other=0.0)
            tl.store(above + nodes, left + right, mask=nodes < half)
            left = tl.load(surprise + nodes, mask=nodes < half, other=0.0)
            right = tl.load(surprise + half + nodes, mask=nodes < wide - half, other=0.0)
            tl.store(surprise + nodes, left + right, mask=nodes < half)
    tl.debug_barrier()
    total = tl.load(tree + tl.load(starts + num_levels - 1))
    tl.store(entropies + row, (tl.log(total) - tl.load(surprise) / total).to(tl.float32))
    for first in range(0, num_draws, DRAWS_BLOCK):
        places = first + tl.arange(0, DRAWS_BLOCK)
        is_there = places < num_draws
        point = tl.load(uniforms + row * num_draws + places, mask=is_there, other=0.0) * total
        node = tl.zeros((DRAWS_BLOCK,), tl.int64)
        whole = tl.zeros((DRAWS_BLOCK,), tl.float64) + total
        for back in range(1, num_levels):
            level = num_levels - 1 - back
            below = tree + tl.load(starts + level)
            left = tl.load(below + node)
            # Where the left branch is the whole sum, nothing is to the right, or nothing that float64 can see.
            is_right = (point >= left) & (whole > left)
            point = tl.where(is_right, point - left, point)
            node = tl.where(is_right, node + tl.load(widths + level + 1), node)
            whole = tl.load(below + node)
        tl.store(drawn + row * num_draws + places, node, mask=is_there)
