# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Loss and gradient of rows as one Triton program, an instance for each row, which reads the row twice.

The first pass sums a row's exponentials, each of a program's lanes for itself, under the largest logit so far: where
that rises, what was summed is scaled down (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
Then the row's terms are worked out in float64, and the second pass writes the gradient. Logits are read in their own
dtype; exponentials and a lane's sums are float32, what is added up over lanes is float64. What a row comes to depends
on that row alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""Shift of a row of -inf alone, float32's least: a difference of two infinities would be a NaN."""

NO_LABEL = tl.constexpr(-100)

NOTHING = tl.constexpr(0)
DENSE = tl.constexpr(1)
HEAD = tl.constexpr(2)
DRAWS = tl.constexpr(3)
"""What a teacher has said of a row (`KIND`): nothing, all logits, those of some ids and the others' mass, draws."""


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def learn_rows(  # noqa: C901 - one program for all, so that a row is read twice and written once
    student,
    student_stride,
    teacher,
    teacher_stride,
    labels,
    named,
    values,
    rest,
    is_named,
    gradient,
    gradient_stride,
    terms,
    width,
    num_named,
    per_t,
    label_weight,
    kl_weight,
    KIND: tl.constexpr,
    TEMPERED: tl.constexpr,
    WRITES: tl.constexpr,
    BLOCK: tl.constexpr,
    NAMED_BLOCK: tl.constexpr,
) -> None:
    """Write one row's terms, `[r, 4]` float64 as `RowTerms` has them, and its gradient where one is wanted.

    `named` `[r, K]` int64 are the ids of a head or of draws, `values` their log-probabilities or weights, `rest` `[r]`
    the log of the tail's mass or the entropy, `is_named` `[r, width]` uint8 is 1 at the ids of a head. `label_weight`
    and `kl_weight` are those of `RowWeights`.
    """
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    gradient += row * gradient_stride
    is_named += row * width
    named += row * num_named
    values += row * num_named
    label = tl.load(labels + row)
    has_label = label != NO_LABEL
    row_label_weight = tl.where(has_label, label_weight, 0.0).to(tl.float64)
    at_label = tl.load(student + tl.where(has_label, label, 0)).to(tl.float64)

    s_max = tl.full((), LOWEST, tl.float32)
    t_max = tl.full((), LOWEST, tl.float32)
    plain_sums = tl.zeros((BLOCK,), tl.float32)
    cooled_sums = tl.zeros((BLOCK,), tl.float32)
    probs_sums = tl.zeros((BLOCK,), tl.float32)
    expected_sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        is_there = ids < width
        s = tl.load(student + ids, mask=is_there, other=float("-inf")).to(tl.float32)
        if KIND == HEAD:
            # The tail has a log-normaliser of its own, from its own largest logit: `1 - sum(head)` would be rounding.
            s = tl.where(tl.load(is_named + ids, mask=is_there, other=0) != 0, float("-inf"), s)
        s_new = tl.maximum(s_max, tl.max(s, 0))
        s_rise = s_new - s_max
        s_below = s - s_new
        plain_sums = plain_sums * tl.exp(-s_rise) + tl.exp(s_below)
        if TEMPERED:
            cooled_sums = cooled_sums * tl.exp(-s_rise * per_t) + tl.exp(s_below * per_t)
        if KIND == DENSE:
            t = tl.load(teacher + ids, mask=is_there, other=float("-inf")).to(tl.float32)
            t_new = tl.maximum(t_max, tl.max(t, 0))
            t_rise = t_new - t_max
            t_below = t - t_new
            p = tl.exp(t_below * per_t)
            # An id that the teacher rules out (-inf) counts 0, whatever the student says of it.
            is_possible = t > float("-inf")
            difference = tl.where(is_possible, t_below, 0.0) - tl.where(is_possible, s_below, 0.0)
            # Before the first that is possible there is nothing to be moved, and a rise from LOWEST may be infinite.
            moved = tl.where(t_max == LOWEST, 0.0, (t_rise - s_rise) * per_t)
            cooling = tl.exp(-t_rise * per_t)
            expected_sums = (expected_sums - moved * probs_sums) * cooling + p * (difference * per_t)
            probs_sums = probs_sums * cooling + p
            t_max = t_new
        s_max = s_new

    tail_max = s_max.to(tl.float64)
    tail_plain = tl.sum(plain_sums.to(tl.float64), 0)
    tail_cooled = tail_plain
    if TEMPERED:
        tail_cooled = tl.sum(cooled_sums.to(tl.float64), 0)
    top = tail_max
    plain = tail_plain
    cooled = tail_cooled
    below = tl.full((), 0.0, tl.float64)
    log_normalizer = tl.full((), 0.0, tl.float64)
    kl = tl.full((), 0.0, tl.float64)
    teacher_normalizer = tl.full((), 0.0, tl.float64)
    probs = tl.full((), 1.0, tl.float64)
    # What the weight of an exponential at T is made of: kl_weight over their sum, where the teacher says all.
    cooled_weight = tl.full((), 0.0, tl.float64)
    if KIND == DENSE:
        probs = tl.sum(probs_sums.to(tl.float64), 0)
        # One logarithm of the ratio: the difference of two of about ten would lose digits of a small KL.
        kl = tl.sum(expected_sums.to(tl.float64), 0) / probs + tl.log(cooled / probs)
        teacher_normalizer = t_max.to(tl.float64) + tl.log(probs)
        cooled_weight = kl_weight / cooled
    if KIND == DRAWS:
        expected = tl.full((), 0.0, tl.float64)
        for start in range(0, num_named, NAMED_BLOCK):
            places = start + tl.arange(0, NAMED_BLOCK)
            is_there = places < num_named
            share = tl.load(values + places, mask=is_there, other=0.0).to(tl.float64)
            drawn = tl.load(named + places, mask=is_there, other=0)
            x = (tl.load(student + drawn, mask=is_there, other=0.0).to(tl.float64) - top) * per_t
            expected += tl.sum(tl.where(share > 0, share * x, 0.0), 0)
        kl = tl.log(cooled) - expected - tl.load(rest + row).to(tl.float64)
        cooled_weight = kl_weight / cooled
    if KIND == HEAD:
        for start in range(0, num_named, NAMED_BLOCK):
            places = start + tl.arange(0, NAMED_BLOCK)
            is_there = places < num_named
            kept = tl.load(named + places, mask=is_there, other=0)
            h = tl.load(student + kept, mask=is_there, other=float("-inf")).to(tl.float64)
            top = tl.maximum(top, tl.max(h, 0))
        # Of a tail that is not there (every id is kept) the largest logit is no number to raise e to.
        below = tl.maximum(tail_max - top, LOWEST)
        plain = tail_plain * tl.exp(below)
        cooled = tail_cooled * tl.exp(below * per_t)
        for start in range(0, num_named, NAMED_BLOCK):
            places = start + tl.arange(0, NAMED_BLOCK)
            is_there = places < num_named
            kept = tl.load(named + places, mask=is_there, other=0)
            h = tl.load(student + kept, mask=is_there, other=float("-inf")).to(tl.float64) - top
            plain += tl.sum(tl.exp(h), 0)
            cooled += tl.sum(tl.exp(h * per_t), 0)
        log_normalizer = tl.log(cooled)
        log_tail = below * per_t + tl.log(tail_cooled) - log_normalizer
        taught_tail = tl.load(rest + row).to(tl.float64)
        kl = tl.where(taught_tail != float("-inf"), tl.exp(taught_tail) * (taught_tail - log_tail), 0.0)
        for start in range(0, num_named, NAMED_BLOCK):
            places = start + tl.arange(0, NAMED_BLOCK)
            is_there = places < num_named
            kept = tl.load(named + places, mask=is_there, other=0)
            h = tl.load(student + kept, mask=is_there, other=0.0).to(tl.float64) - top
            taught = tl.load(values + places, mask=is_there, other=float("-inf")).to(tl.float64)
            apart = taught - (h * per_t - log_normalizer)
            kl += tl.sum(tl.where(taught != float("-inf"), tl.exp(taught) * apart, 0.0), 0)
        cooled_weight = kl_weight * (tl.exp(log_tail) - tl.exp(taught_tail)) / tail_cooled
        cooled_weight = tl.where(tail_cooled > 0, cooled_weight, 0.0)

    terms += row * 4
    tl.store(terms, tl.where(has_label, tl.log(plain) - (at_label - top), 0.0))
    tl.store(terms + 1, kl)
    tl.store(terms + 2, top + tl.log(plain))
    tl.store(terms + 3, teacher_normalizer)

    if WRITES:
        named_weight = row_label_weight / plain
        # Under the largest logit of what the second pass goes over, which is the tail's where there is a head.
        plain_weight = (named_weight * tl.exp(below)).to(tl.float32)
        if TEMPERED:
            second_weight = cooled_weight.to(tl.float32)
        else:
            plain_weight = (named_weight * tl.exp(below) + cooled_weight).to(tl.float32)
            second_weight = plain_weight
        probs_weight = (kl_weight / probs).to(tl.float32)
        at_label_weight = row_label_weight.to(tl.float32)
        for start in range(0, width, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            is_there = ids < width
            s = tl.load(student + ids, mask=is_there, other=float("-inf")).to(tl.float32) - s_max
            result = tl.exp(s) * plain_weight
            if TEMPERED:
                result += tl.exp(s * per_t) * second_weight
            if KIND == DENSE:
                t = tl.load(teacher + ids, mask=is_there, other=float("-inf")).to(tl.float32) - t_max
                result -= tl.exp(t * per_t) * probs_weight
            result = tl.where(ids == label, result - at_label_weight, result)
            if KIND == HEAD:
                is_there = is_there & (tl.load(is_named + ids, mask=is_there, other=0) == 0)
            tl.store(gradient + ids, result.to(gradient.dtype.element_ty), mask=is_there)
        if KIND == HEAD:
            for start in range(0, num_named, NAMED_BLOCK):
                places = start + tl.arange(0, NAMED_BLOCK)
                is_there = places < num_named
                kept = tl.load(named + places, mask=is_there, other=0)
                h = tl.load(student + kept, mask=is_there, other=0.0).to(tl.float64) - top
                taught = tl.load(values + places, mask=is_there, other=float("-inf")).to(tl.float64)
                of_kl = kl_weight * (tl.exp(h * per_t - log_normalizer) - tl.exp(taught))
                of_label = named_weight * tl.exp(h) - tl.where(kept == label, row_label_weight, 0.0)
                tl.store(gradient + kept, (of_kl + of_label).to(gradient.dtype.element_ty), mask=is_there)
        if KIND == DRAWS:
            # Written once more, from the logits: what was written above may have been rounded.
            tl.debug_barrier()
            for start in range(0, num_named, NAMED_BLOCK):
                places = start + tl.arange(0, NAMED_BLOCK)
                share = tl.load(values + places, mask=places < num_named, other=0.0).to(tl.float64)
                drawn = tl.load(named + places, mask=share > 0, other=0)
                x = tl.load(student + drawn, mask=share > 0, other=0.0).to(tl.float64) - top
                of_kl = cooled_weight * tl.exp(x * per_t) - kl_weight * share
                of_label = named_weight * tl.exp(x) - tl.where(drawn == label, row_label_weight, 0.0)
                tl.store(gradient + drawn, (of_kl + of_label).to(gradient.dtype.element_ty), mask=share > 0)
