# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The two passes over rows of logits as Triton programs, one for each row.

The first pass sums a row's exponentials a block at a time, under the largest logit so far: where that rises, what was
summed is scaled down (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). The second pass
writes the gradient. Logits are read in their own dtype; exponentials are float32, what is added up over blocks float64.
What a row comes to depends on that row alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""Shift of a row of -inf alone, float32's least: a difference of two infinities would be a NaN."""

MAX, PLAIN, COOLED, TAUGHT_MAX, PROBS, EXPECTED = range(6)
"""Columns of the sums, `[r, 6]` float64: largest logit, sum of e^(x - max), of e^((x - max) / T), the teacher's largest
logit and sum at T, and the sum of the teacher's exponentials times ((t - t_max) - (s - s_max)) / T.
"""


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def sum_rows(
    student,
    student_stride,
    teacher,
    teacher_stride,
    sums,
    width,
    per_t,
    TAUGHT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the sums of one row; without a teacher its three columns are left as they are."""
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    s_max = tl.full((), LOWEST, tl.float32)
    t_max = tl.full((), LOWEST, tl.float32)
    plain = tl.full((), 0.0, tl.float64)
    cooled = tl.full((), 0.0, tl.float64)
    probs = tl.full((), 0.0, tl.float64)
    expected = tl.full((), 0.0, tl.float64)
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        is_there = ids < width
        s = tl.load(student + ids, mask=is_there, other=float("-inf")).to(tl.float32)
        s_new = tl.maximum(s_max, tl.max(s, 0))
        s_rise = (s_new - s_max).to(tl.float64)
        s_below = s - s_new
        plain = plain * tl.exp(-s_rise) + tl.sum(tl.exp(s_below), 0).to(tl.float64)
        cooled = cooled * tl.exp(-s_rise * per_t) + tl.sum(tl.exp(s_below * per_t), 0).to(tl.float64)
        if TAUGHT:
            t = tl.load(teacher + ids, mask=is_there, other=float("-inf")).to(tl.float32)
            t_new = tl.maximum(t_max, tl.max(t, 0))
            t_rise = (t_new - t_max).to(tl.float64)
            t_below = t - t_new
            p = tl.exp(t_below * per_t)
            # An id that the teacher rules out (-inf) counts 0, whatever the student says of it.
            is_possible = t > float("-inf")
            difference = tl.where(is_possible, t_below, 0.0) - tl.where(is_possible, s_below, 0.0)
            expected = (expected - (t_rise - s_rise) * per_t * probs) * tl.exp(-t_rise * per_t)
            expected += tl.sum(p * (difference * per_t), 0).to(tl.float64)
            probs = probs * tl.exp(-t_rise * per_t) + tl.sum(p, 0).to(tl.float64)
            t_max = t_new
        s_max = s_new
    sums += row * 6
    tl.store(sums, s_max.to(tl.float64))
    tl.store(sums + 1, plain)
    tl.store(sums + 2, cooled)
    if TAUGHT:
        tl.store(sums + 3, t_max.to(tl.float64))
        tl.store(sums + 4, probs)
        tl.store(sums + 5, expected)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def write_rows(
    student,
    student_stride,
    teacher,
    teacher_stride,
    tops,
    weights,
    labels,
    gradient,
    gradient_stride,
    width,
    per_t,
    TAUGHT: tl.constexpr,
    TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the gradient of one row.

    That is the exponentials times their `weights` (`[r, 4]` float32: plain, cooled, the teacher's, and the label's
    own), under the largest logits in `tops` (`[r, 2]` float32: student, teacher). At T = 1 plain holds cooled's weight.
    """
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    gradient += row * gradient_stride
    s_max = tl.load(tops + row * 2)
    t_max = tl.load(tops + row * 2 + 1)
    plain_weight = tl.load(weights + row * 4)
    cooled_weight = tl.load(weights + row * 4 + 1)
    probs_weight = tl.load(weights + row * 4 + 2)
    label_weight = tl.load(weights + row * 4 + 3)
    label = tl.load(labels + row)
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        is_there = ids < width
        s = tl.load(student + ids, mask=is_there, other=float("-inf")).to(tl.float32) - s_max
        result = tl.exp(s) * plain_weight
        if TEMPERED:
            result += tl.exp(s * per_t) * cooled_weight
        if TAUGHT:
            t = tl.load(teacher + ids, mask=is_there, other=float("-inf")).to(tl.float32) - t_max
            result -= tl.exp(t * per_t) * probs_weight
        result = tl.where(ids == label, result - label_weight, result)
        tl.store(gradient + ids, result.to(gradient.dtype.element_ty), mask=is_there)
