"""Loops over a piece of a row, and the exponential in them, in the plain arithmetic that LLVM makes vectors of.

Which liberties the compiler may take is said for each function. None may assume that there are no NaNs or infinities:
they are how a row that has no loss is found out. Every scalar here is a float32 or an int32; a Python number would make
the loop one of float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Floats = NDArray[np.float32]
Scalar: TypeAlias = Any
"""A float32. Annotations are for people: numba finds its own types, and mypy knows no arithmetic of one width."""


def in_order(function: Function) -> Function:
    """Compile what is computed in the order that is written, but for a product and a sum made in one rounding."""
    return cast("Function", numba.njit(fastmath={"contract"}, error_model="numpy")(function))


def summing(function: Function) -> Function:
    """Compile sums that may be split over the lanes of a vector, and so have another order than the one written."""
    return cast("Function", numba.njit(fastmath={"contract", "reassoc"}, error_model="numpy")(function))


ZERO, ONE, NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
"""ln 2 in two parts; a whole number of up to 9 bits times the first is exact."""
ROUNDER = np.float32(1.5 * 2**23)
"""Added to a number below 2^22 it leaves the nearest whole number in the low bits of the sum."""
EXPONENT_OF_ONE = np.int32(127 - 0x4B400000)
"""The exponent field of 1, less the bits of `ROUNDER`."""
C2, C3, C4, C5, C6 = (
    np.float32(c)
    for c in (4.999999403953552e-1, 1.666652113199234e-1, 4.166838899254799e-2, 8.36874544620514e-3, 1.381453941576e-3)
)
"""exp(r) = 1 + r + r^2 (C2 + C3 r + ...), fitted for the least relative error, 3e-9, over |r| <= ln(2) / 2."""
LARGEST, SMALLEST = np.float32(88.0), np.float32(-88.0)
"""Exponents are held between these; that of the smaller is rounded to -127 in base 2, whose power's bits are all 0."""
SIGN, MAGNITUDE, LEAST = np.int32(31), np.int32(0x7FFFFFFF), np.int32(-(2**31))
MANTISSA_BITS = np.int32(23)


@in_order
def exponential(x: Scalar) -> Scalar:
    """Return e^x to 0.89 units in the last place: 0 below -87.7, e^88 from 88 upwards, NaN for a NaN.

    Its steps must stay in order: `(x + ROUNDER) - ROUNDER` rounds x to a whole number, and is not x.
    """
    x = LARGEST if x > LARGEST else x  # both written so that a NaN stays
    x = SMALLEST if x < SMALLEST else x
    shifted = np.float32(x * LOG2_E + ROUNDER)
    whole = shifted - ROUNDER
    rest = (x - whole * LN2_HIGH) - whole * LN2_LOW
    tail = (((C6 * rest + C5) * rest + C4) * rest + C3) * rest + C2
    power_of_two = np.int32((shifted.view(np.int32) + EXPONENT_OF_ONE) << MANTISSA_BITS).view(np.float32)
    return ((tail * rest + ONE) * rest + ONE) * power_of_two


@in_order
def scaled(x: Scalar, shift: Scalar, scale: Scalar) -> Scalar:
    """Return a logit less its row's shift, over T: rounded here, not where the order of a sum is free."""
    return (x - shift) * scale


@summing
def largest(piece: Floats) -> Scalar:
    """Return the largest of a piece, -inf for none; of one with a NaN either that or the largest of the others.

    As whole numbers, whose order is that of the floats once the negative ones are turned over: LLVM makes vectors of
    the maximum of floats only where it may assume that there is no NaN.
    """
    bits = piece.view(np.int32)
    most = LEAST
    for j in range(bits.size):
        most = max(most, bits[j] ^ ((bits[j] >> SIGN) & MAGNITUDE))
    return NOTHING if most == LEAST else np.int32(most ^ ((most >> SIGN) & MAGNITUDE)).view(np.float32)


Temper = int
"""Which temperatures a loop is compiled for: those below, which save work, or any."""
ONE_T, TWO_T, ANY_T = 1, 2, 0


def temper_of(temperature: float) -> Temper:
    """Return what serves a temperature best."""
    return {1.0: ONE_T, 2.0: TWO_T}.get(temperature, ANY_T)


Sums = tuple[Scalar, Scalar, Scalar, Scalar]


@cache
def exponentials(taught: bool, temper: Temper) -> Callable[..., Sums]:
    """Return the loop that exponentiates a block of a row, compiled for one of six uses.

    It fills `plain` with e^(s - shift), where T is not 1 `cooled` with the same over T, and where there is a teacher
    (`taught`) `probs` with its. At T = 2 `plain` is the square of `cooled`, which saves a third of the arithmetic. It
    returns their sums (that of `plain` twice where T is 1), and the sum of
    `probs` times the difference of the two sides' exponents, where an id that the teacher rules out counts 0.
    One loop, so that the arithmetic hides the way of student and teacher from memory.
    """

    @summing
    def run(
        student: Floats,
        teacher: Floats,
        student_shift: Scalar,
        teacher_shift: Scalar,
        inverse_temperature: Scalar,
        plain: Floats,
        cooled: Floats,
        probs: Floats,
    ) -> Sums:
        plain_sum, cooled_sum, probs_sum, expected = ZERO, ZERO, ZERO, ZERO
        for j in range(student.size):
            exponent = scaled(student[j], student_shift, inverse_temperature)
            value = exponential(exponent)
            if temper != ONE_T:
                cooled[j] = value
                cooled_sum += value
                value = value * value if temper == TWO_T else exponential(scaled(student[j], student_shift, ONE))
            plain[j] = value
            plain_sum += value
            if taught:
                taught_exponent = scaled(teacher[j], teacher_shift, inverse_temperature)
                value = exponential(taught_exponent)
                probs[j] = value
                probs_sum += value
                term = value * (taught_exponent - exponent)
                expected += ZERO if teacher[j] == NOTHING else term
        return plain_sum, plain_sum if temper == ONE_T else cooled_sum, probs_sum, expected

    return run


@cache
def gradient_writer(taught: bool, tempered: bool) -> Callable[..., None]:
    """Return the loop that weighs a block's exponentials and adds them up to its gradient."""

    @in_order
    def run(
        plain: Floats,
        cooled: Floats,
        probs: Floats,
        plain_weight: Scalar,
        cooled_weight: Scalar,
        probs_weight: Scalar,
        gradient: Floats,
    ) -> None:
        for j in range(gradient.size):
            value = plain[j] * plain_weight
            if tempered:
                value += cooled[j] * cooled_weight
            if taught:
                value -= probs[j] * probs_weight
            gradient[j] = value

    return run
