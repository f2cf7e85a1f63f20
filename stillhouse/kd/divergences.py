"""How far a student's distribution is from its teacher's: which divergences there are, and the arithmetic of two.

The forward KL is fused into the row kernel (`rows`). The two here share the shape of their gradient: with q the
student's distribution over x = s / T, and a score v for each id,

    d(divergence)/dx  =  q * (sum(q v) - v)

Knows nothing of payloads, labels or denominators. Legend: r rows of the chunk, N vocabulary entries.
`docs/mathematics.md` derives the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from stillhouse.errors import InvalidRequestError

DivergenceName = Literal["forward_kl", "reverse_kl", "jsd"]
"""What `1 - alpha` weighs: KL(teacher || student), KL(student || teacher), or what lies between the two.

`jsd` is the generalised Jensen-Shannon divergence of arXiv 2306.13649, eq. 1, with the teacher's share `jsd_beta`.
"""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A divergence by name; `beta`, the teacher's share of the mixture, is read with `jsd` alone."""

    name: DivergenceName = "forward_kl"
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in get_args(DivergenceName):
            raise InvalidRequestError(f"loss must be forward_kl, reverse_kl or jsd; got {self.name!r}")
        is_number = isinstance(self.beta, float | int) and not isinstance(self.beta, bool)
        if not is_number or not 0 < self.beta < 1:
            raise InvalidRequestError(
                f"jsd_beta, the teacher's share of the mixture, must be above 0 and below 1; got {self.beta!r}; at the "
                "ends jsd vanishes, and what it tends to is forward_kl (0) or reverse_kl (1)"
            )


FORWARD_KL = Divergence()


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides of a chunk at T, `[r, N]` and `[r, 1]`, in buffers that may be overwritten, all but the `exp`s.

    `student` and `teacher` are tempered logits less their row's largest, `student_exp` and `teacher_exp` their
    exponentials, `student_sum` and `teacher_sum` the sums of those. `spare` holds nothing.
    """

    student: Tensor
    teacher: Tensor
    student_exp: Tensor
    teacher_exp: Tensor
    student_sum: Tensor
    teacher_sum: Tensor
    spare: Tensor


@dataclass(frozen=True, slots=True)
class Scored:
    """A divergence, `[r, 1]`, and its gradient's score: `values` `[r, N]` and `mean`, `sum(q v)`, `[r, 1]`."""

    divergence: Tensor
    values: Tensor
    mean: Tensor


def scored(divergence: Divergence, sides: Sides) -> Scored:
    """Return the divergence of each row, one of those whose gradient has a score."""
    return _reverse_kl(sides) if divergence.name == "reverse_kl" else _jensen_shannon(sides, divergence.beta)


def _reverse_kl(sides: Sides) -> Scored:
    """Return KL(student || teacher): its score is log p - log q, up to a constant.

    An id that the teacher rules out and the student does not makes a row infinite, or NaN where the student's mass
    has vanished in float32: either is for the caller to refuse. What the student rules out contributes 0.
    """
    difference = sides.teacher.sub_(sides.student)
    difference.nan_to_num_(nan=0.0, posinf=_beyond(difference.dtype), neginf=-torch.inf)
    mean = torch.mul(difference, sides.student_exp, out=sides.spare).sum(-1, keepdim=True) / sides.student_sum
    # One logarithm of the ratio, as for the forward KL.
    return Scored((sides.teacher_sum / sides.student_sum).log() - mean, difference, mean)


def _jensen_shannon(sides: Sides, beta: float) -> Scored:
    """Return beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; its score is (1 - beta) log(m / q).

    Written with d = log p - log q and f = beta where d < 0, else 1 - beta:

        log(m / q) = w + max(d, 0)      log(m / p) = w + max(-d, 0)      w = log1p(f expm1(-|d|))

    so that nothing overflows, and little is lost near agreement, where both logarithms are of the size of d.
    """
    spare, log_ratio = sides.spare, (sides.student_sum / sides.teacher_sum).log()
    ratio = sides.teacher.sub_(sides.student).add_(log_ratio)
    beyond = _beyond(ratio.dtype)
    ratio.nan_to_num_(nan=0.0, posinf=beyond, neginf=-beyond)
    share = torch.where(ratio < 0, ratio.new_tensor(beta), ratio.new_tensor(1 - beta))
    common = torch.abs(ratio, out=sides.student).neg_().expm1_().mul_(share).log1p_()
    # A share that rounds to 1 would make the logarithm of a mixture -inf.
    common.clamp_min_(math.log(min(beta, 1 - beta)))
    from_teacher = torch.clamp_max(ratio, 0.0, out=spare).neg_().add_(common).mul_(sides.teacher_exp)
    taught = from_teacher.sum(-1, keepdim=True) / sides.teacher_sum
    values = ratio.clamp_min_(0.0).add_(common).mul_(1 - beta)
    mean = torch.mul(values, sides.student_exp, out=spare).sum(-1, keepdim=True) / sides.student_sum
    return Scored(-(beta * taught + mean), values, mean)


def _beyond(dtype: torch.dtype) -> float:
    """Return what stands for an infinite difference: more than any, and still 0 when it is multiplied by a mass of 0.

    Its products with a gradient's weights stay within the dtype too.
    """
    return math.sqrt(torch.finfo(dtype).max)
