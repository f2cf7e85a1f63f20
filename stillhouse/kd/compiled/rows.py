"""Loss and gradient of rows against the teacher's whole distribution, or of the student's own side alone.

A row is gone over once from memory, a block at a time, and its exponentials are kept; the gradient is made of them
while they are still in the core's second-level cache. No pass looks for a row's largest logit: a block is exponentiated
under the shift that has served so far, at first the largest of the first block, and where that was too low by far the
sums say so, the shift is raised and the block done again. Sums of a block are float32 in the lanes of a vector, those
of a row float64. What a row comes to depends on that row alone, not on who computes it or what stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from stillhouse.kd.compiled.vectors import (
    ONE_T,
    Floats,
    Scalar,
    Temper,
    exponentials,
    gradient_writer,
    in_order,
    largest,
)

BLOCK = 2048
"""Logits of a block: its two inputs and three exponentials fit in a first-level cache of 48 KiB."""

HIGH = np.float32(2.0**30)
"""A block whose sum of exponentials is above this has a shift that is too low: e^x ends at 3e38."""

LOWEST = np.float32(np.finfo(np.float32).min)
"""Shift before any logit is known, or of -inf alone: a difference of two infinities would be a NaN."""

NO_LABEL = np.int64(-100)

CROSS_ENTROPY, KL, STUDENT_NORMALIZER, TEACHER_NORMALIZER = range(4)
"""Columns of the terms, `[r, 4]` float64."""

Doubles = NDArray[np.float64]
FLAT = numba.float32[::1]
SIGNATURE = numba.void(
    *(FLAT, numba.int64) * 2,  # student and teacher, each with the distance from one row to the next
    numba.int64[::1],  # labels
    *(numba.int64,) * 3,  # width, the first row and the one after the last
    numba.float32,  # 1 / T
    *(numba.float64,) * 2,  # weights
    *(FLAT, numba.int64),  # gradient, of no size where none is wanted
    numba.float64[:, ::1],  # terms
)


def over_rows(signature: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Compile a loop over rows at once, for one signature; it holds no GIL, so that threads can share the rows."""
    compiler: Callable[[Callable[..., None]], Callable[..., None]] = numba.njit(
        signature, nogil=True, error_model="numpy"
    )
    return compiler


RowSums = tuple[Scalar, Scalar, Scalar, Scalar, Scalar, Scalar]
"""The shifts of student and teacher; in float64 the sums of three kinds of exponentials, the expected difference."""


@cache
def exponentiate_row(taught: bool, temper: Temper) -> Callable[..., RowSums]:
    """Return the first pass over a row: it keeps the exponentials, and under which shifts each block has its own."""
    exponentiate = exponentials(taught, temper)

    @in_order
    def run(student: Floats, teacher: Floats, inverse_temperature: Scalar, kept: Floats, shifts: Doubles) -> RowSums:
        per_t = np.float64(inverse_temperature)
        plain, cooled, probs = kept[0], kept[1], kept[2]
        s_shift, t_shift = LOWEST, LOWEST
        plain_sum: Scalar = 0.0
        cooled_sum: Scalar = 0.0
        probs_sum: Scalar = 0.0
        expected: Scalar = 0.0
        for n in range(len(shifts)):
            a, z = n * BLOCK, min(n * BLOCK + BLOCK, student.size)
            s, t = student[a:z], teacher[a:z]
            is_raised = n == 0
            while True:
                if is_raised:
                    s_old, t_old = np.float64(s_shift), np.float64(t_shift)
                    s_shift, t_shift = max(largest(s), s_shift), max(largest(t), t_shift)
                    s_rise, t_rise = s_shift - s_old, t_shift - t_old
                    plain_sum *= math.exp(-s_rise)
                    cooled_sum *= math.exp(-s_rise * per_t)
                    expected = (expected - (t_rise - s_rise) * per_t * probs_sum) * math.exp(-t_rise * per_t)
                    probs_sum *= math.exp(-t_rise * per_t)
                sums = exponentiate(s, t, s_shift, t_shift, inverse_temperature, plain[a:z], cooled[a:z], probs[a:z])
                if is_raised or (sums[0] < HIGH and sums[1] < HIGH and sums[2] < HIGH):
                    break
                is_raised = True
            shifts[n, 0], shifts[n, 1] = s_shift, t_shift
            plain_sum += sums[0]
            cooled_sum += sums[1]
            probs_sum += sums[2]
            expected += sums[3]
        return s_shift, t_shift, plain_sum, cooled_sum, probs_sum, expected

    return run


@cache
def write_row(taught: bool, tempered: bool) -> Callable[..., None]:
    """Return the second pass: the gradient of a row out of its exponentials.

    The weights are what each kind of exponential is multiplied by once it is divided by its row's sum.
    """
    write = gradient_writer(taught, tempered)

    @in_order
    def run(
        kept: Floats, shifts: Doubles, sums: RowSums, inverse_temperature: Scalar, label_weight: float,
        kl_weight: float, gradient: Floats,
    ) -> None:  # fmt: skip
        per_t = np.float64(inverse_temperature)
        plain, cooled, probs = kept[0], kept[1], kept[2]
        s_shift, t_shift, plain_sum, cooled_sum, probs_sum, _ = sums
        for n in range(len(shifts)):
            a, z = n * BLOCK, min(n * BLOCK + BLOCK, gradient.size)
            # What was exponentiated under an earlier shift is that much too large.
            s_over, t_over = shifts[n, 0] - s_shift, shifts[n, 1] - t_shift
            plain_weight = label_weight / plain_sum * math.exp(s_over)
            cooled_weight = kl_weight / cooled_sum * math.exp(s_over * per_t)
            probs_weight = kl_weight / probs_sum * math.exp(t_over * per_t)
            if not tempered:
                plain_weight += cooled_weight
            write(
                plain[a:z],
                cooled[a:z],
                probs[a:z],
                np.float32(plain_weight),
                np.float32(cooled_weight),
                np.float32(probs_weight),
                gradient[a:z],
            )

    return run


@cache
def dense_rows(taught: bool, temper: Temper) -> Callable[..., None]:
    """Return the kernel for rows with a teacher or without, at T = 1, 2 or any.

    Without a teacher the column KL holds the log-normaliser of the student's tempered logits, and the gradient is that
    of alpha CE plus the weighted log-normaliser: what was drawn from a teacher is for the caller to take off.
    """
    exponentiate, write = exponentiate_row(taught, temper), write_row(taught, temper != ONE_T)

    @over_rows(SIGNATURE)
    def run(
        student: Floats,
        student_stride: int,
        teacher: Floats,
        teacher_stride: int,
        labels: NDArray[np.int64],
        width: int,
        first: int,
        last: int,
        inverse_temperature: Scalar,
        cross_entropy_weight: float,
        kl_weight: float,
        gradient: Floats,
        gradient_stride: int,
        terms: Doubles,
    ) -> None:
        kept = np.empty((3, width), np.float32)
        shifts = np.empty(((width + BLOCK - 1) // BLOCK, 2), np.float64)
        for i in range(first, last):
            s = student[i * student_stride : i * student_stride + width]
            t = teacher[i * teacher_stride : i * teacher_stride + width]
            sums = exponentiate(s, t, inverse_temperature, kept, shifts)
            s_shift, t_shift, plain_sum, cooled_sum, probs_sum, expected = sums
            log_plain_sum = math.log(plain_sum)
            label = labels[i]
            is_labelled = label != NO_LABEL
            terms[i, CROSS_ENTROPY] = log_plain_sum - (np.float64(s[label]) - s_shift) if is_labelled else 0.0
            terms[i, STUDENT_NORMALIZER] = s_shift + log_plain_sum
            if taught:
                # One logarithm of the ratio: the difference of two of about ten would lose digits of a small KL.
                terms[i, KL] = expected / probs_sum + math.log(cooled_sum / probs_sum)
                terms[i, TEACHER_NORMALIZER] = t_shift + math.log(probs_sum)
            else:
                terms[i, KL] = s_shift * np.float64(inverse_temperature) + math.log(cooled_sum)
            if gradient.size > 0:
                target = gradient[i * gradient_stride : i * gradient_stride + width]
                label_weight = cross_entropy_weight if is_labelled else 0.0
                write(kept, shifts, sums, inverse_temperature, label_weight, kl_weight, target)
                if is_labelled:
                    target[label] -= np.float32(label_weight)

    return run
