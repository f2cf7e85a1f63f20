"""Loss and gradient of rows against a head of named ids and one bucket for all others.

The tail has a log-normaliser of its own, from its own largest logit, so it is copied, the head struck out of the copy,
and the copy looked over before anything is exponentiated: `1 - sum(head)` would be rounding, and a shift that serves
the head may leave nothing of a tail that is far below it. What is done once for each kept id is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numba
import numpy as np
from numpy.typing import NDArray

from stillhouse.kd.compiled.rows import (
    BLOCK,
    CROSS_ENTROPY,
    FLAT,
    KL,
    LOWEST,
    NO_LABEL,
    STUDENT_NORMALIZER,
    Doubles,
    over_rows,
)
from stillhouse.kd.compiled.vectors import (
    NOTHING,
    ONE,
    ZERO,
    Floats,
    Scalar,
    exponential,
    gradient_writer,
    in_order,
    largest,
    scaled,
    summing,
)

SIGNATURE = numba.void(
    *(FLAT, numba.int64),  # student, with the distance from one row to the next
    *(numba.int64[:, ::1], numba.float32[:, ::1], FLAT),  # the head's ids, its log-probabilities, the tail's
    numba.int64[::1],  # labels
    *(numba.int64,) * 3,  # width, the first row and the one after the last
    numba.float32,  # 1 / T
    *(numba.float64,) * 2,  # weights
    *(FLAT, numba.int64),  # gradient, of no size where none is wanted
    numba.float64[:, ::1],  # terms
)


@summing
def exponentiate_block(block: Floats, shift: Scalar, scale: Scalar, target: Floats) -> Scalar:
    """Write e^((x - shift) / T) of a block, and return their sum.

    The target is other memory: where the two overlap, LLVM's vectors give way to one logit at a time.
    """
    total = ZERO
    for j in range(block.size):
        value = exponential(scaled(block[j], shift, scale))
        target[j] = value
        total += value
    return total


@in_order
def exponentiate(row: Floats, shift: Scalar, scale: Scalar, target: Floats) -> Scalar:
    """Do so with a whole row; the sums of its blocks are added up in float64."""
    total: Scalar = 0.0
    for a in range(0, row.size, BLOCK):
        z = min(a + BLOCK, row.size)
        total += exponentiate_block(row[a:z], shift, scale, target[a:z])
    return total


@in_order
def split(row: Floats, ids: NDArray[np.int64], head: Doubles, tail: Floats) -> Scalar:
    """Fill `tail` with the row less its head, `head` with the logits at `ids` less the row's largest: return that."""
    for j in range(row.size):
        tail[j] = row[j]
    top = max(largest(tail), LOWEST)
    for k in range(ids.size):
        head[k] = np.float64(row[ids[k]]) - top
    for k in range(ids.size):
        tail[ids[k]] = NOTHING
    return top


@in_order
def log_normalizer(head: Doubles, per_t: float, log_tail: float) -> float:
    """Return the logarithm of all of the student's mass at T, the tail's being known."""
    most = log_tail
    for k in range(head.size):
        most = max(most, head[k] * per_t)
    total = math.exp(log_tail - most)
    for k in range(head.size):
        total += math.exp(head[k] * per_t - most)
    return most + math.log(total)


@in_order
def divergence(log_probs: Floats, head: Doubles, per_t: float, normalizer: float) -> float:
    """Return the head's part of KL: `p (log p - log q)`, 0 where the teacher has no mass at all."""
    total = 0.0
    for k in range(head.size):
        log_prob = np.float64(log_probs[k])
        if log_prob != -math.inf:
            total += math.exp(log_prob) * (log_prob - (head[k] * per_t - normalizer))
    return total


@cache
def top_k_rows(tempered: bool) -> Callable[..., None]:
    """Return the kernel, for T = 1 or another temperature."""
    write = gradient_writer(False, tempered)

    @over_rows(SIGNATURE)
    def run(
        student: Floats,
        student_stride: int,
        ids: NDArray[np.int64],
        log_probs: Floats,
        log_tails: Floats,
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
        tail, cooled, plain = kept[0], kept[1], kept[2]
        head = np.empty(ids.shape[1], np.float64)
        per_t = np.float64(inverse_temperature)
        for i in range(first, last):
            s = student[i * student_stride : i * student_stride + width]
            top = split(s, ids[i], head, tail)
            tail_top = max(largest(tail), LOWEST)
            below = np.float64(tail_top) - top
            tail_sum = exponentiate(tail, tail_top, inverse_temperature, cooled)
            if tempered:
                plain_sum = exponentiate(s, top, ONE, plain)
            else:
                plain_sum = math.exp(log_normalizer(head, 1.0, below + math.log(tail_sum)))

            normalizer = log_normalizer(head, per_t, below * per_t + math.log(tail_sum))
            log_tail, taught_tail = below * per_t + math.log(tail_sum) - normalizer, np.float64(log_tails[i])
            terms[i, KL] = divergence(log_probs[i], head, per_t, normalizer)
            if taught_tail != -math.inf:
                terms[i, KL] += math.exp(taught_tail) * (taught_tail - log_tail)
            label = labels[i]
            is_labelled = label != NO_LABEL
            log_plain_sum = math.log(plain_sum)
            terms[i, CROSS_ENTROPY] = log_plain_sum - (np.float64(s[label]) - top) if is_labelled else 0.0
            terms[i, STUDENT_NORMALIZER] = top + log_plain_sum

            if gradient.size > 0:
                target = gradient[i * gradient_stride : i * gradient_stride + width]
                label_weight = cross_entropy_weight if is_labelled else 0.0
                plain_weight = label_weight / plain_sum
                tail_weight = kl_weight * (math.exp(log_tail) - math.exp(taught_tail)) / tail_sum
                tail_weight = tail_weight if tail_sum > 0 else 0.0
                if tempered:
                    write(plain, cooled, cooled, np.float32(plain_weight), np.float32(tail_weight), ZERO, target)
                else:
                    both = tail_weight + plain_weight * math.exp(below)
                    write(cooled, cooled, cooled, np.float32(both), ZERO, ZERO, target)
                for k in range(head.size):
                    difference = math.exp(head[k] * per_t - normalizer) - math.exp(np.float64(log_probs[i, k]))
                    target[ids[i, k]] = np.float32(kl_weight * difference + plain_weight * math.exp(head[k]))
                if is_labelled:
                    target[label] -= np.float32(label_weight)

    return run
