"""From tensors on a GPU to the programs over rows and back."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any, Final

import torch
from torch import Tensor

from stillhouse.kd.device.rows import COOLED, EXPECTED, LOWEST, MAX, PLAIN, PROBS, TAUGHT_MAX, sum_rows, write_rows
from stillhouse.kd.rows import (
    DEVICE_CHUNK_ELEMENTS,
    NO_LABEL,
    DenseRows,
    RowTerms,
    RowWeights,
    SampledRows,
    TeacherRows,
    TopKRows,
    expected_draw,
    weighted,
)

BLOCK: Final = 4096
"""Logits of a block: 16 for each of a program's 256 threads, in registers."""
LAUNCH: Final[dict[str, Any]] = {"BLOCK": BLOCK, "num_warps": 8, "enable_fp_fusion": True}


class DeviceKernel:
    """The fused loss and gradient of rows on a GPU: the forward KL, or cross-entropy alone, accumulated in float32.

    It keeps to what `RowKernel` promises; its bits differ from that one's.
    """

    def __init__(self, width: int, *, temperature: float, weights: RowWeights) -> None:
        self.max_rows = max(1, DEVICE_CHUNK_ELEMENTS // max(1, width))
        self._width = width
        self._temperature = temperature
        self._per_t = 1.0 / temperature
        self._weights = weights

    def run(self, student: Tensor, teacher: TeacherRows | None, labels: Tensor, gradient: Tensor | None) -> RowTerms:
        """Return the terms of one chunk, float64, and write its gradient: see `RowKernel.run`."""
        student = _flat(student)
        if isinstance(teacher, TopKRows):
            return self._top_k(student, teacher, labels, gradient)
        taught = _flat(teacher.logits) if isinstance(teacher, DenseRows) else None
        sums = self._sums(student, taught)
        labelled = labels != NO_LABEL
        top, plain, cooled = sums[:, MAX], sums[:, PLAIN], sums[:, COOLED]
        kl_weight = 0.0 if teacher is None else self._weights.kl
        # One logarithm of the ratio: the difference of two of about ten would lose digits of a small KL.
        match teacher:
            case DenseRows():
                kl = sums[:, EXPECTED] / sums[:, PROBS] + (cooled / sums[:, PROBS]).log()
                teacher_normalizer = sums[:, TAUGHT_MAX] + sums[:, PROBS].log()
            case SampledRows():
                kl = self._from_draws(student, teacher, top, cooled)
                teacher_normalizer = torch.zeros_like(top)
            case _:
                kl = teacher_normalizer = torch.zeros_like(top)
        if gradient is not None:
            label_weight = labelled * self._weights.cross_entropy
            probs_weight = kl_weight / sums[:, PROBS] if taught is not None else torch.zeros_like(top)
            weights = (label_weight / plain, kl_weight / cooled, probs_weight, label_weight)
            # Where draws come off it, a narrow gradient would be rounded twice.
            is_drawn = isinstance(teacher, SampledRows)
            target = gradient if gradient.dtype == torch.float32 or not is_drawn else gradient.float()
            self._write(student, taught, (top, sums[:, TAUGHT_MAX]), weights, labels, target)
            if isinstance(teacher, SampledRows):
                target.scatter_add_(1, teacher.token_ids, teacher.weights * -kl_weight)
            if target is not gradient:
                gradient.copy_(target)
        cross_entropy = self._cross_entropy(student, labels, top, plain)
        return RowTerms(cross_entropy, kl, top + plain.log(), teacher_normalizer)

    def _top_k(self, student: Tensor, teacher: TopKRows, labels: Tensor, gradient: Tensor | None) -> RowTerms:
        """Do so with a head of named ids and one bucket for all others.

        The tail has a log-normaliser of its own, from its own largest logit: `1 - sum(head)` would be rounding.
        """
        ids, per_t = teacher.token_ids, self._per_t
        head = student.gather(1, ids).double()
        tail = student.clone().scatter_(1, ids, -torch.inf)
        sums = self._sums(tail, None)
        tail_top, tail_plain, tail_sum = sums[:, MAX, None], sums[:, PLAIN, None], sums[:, COOLED, None]
        top = torch.maximum(tail_top, head.amax(1, keepdim=True))
        # Of a tail that is not there (every id is kept) the largest logit is no number to raise e to.
        below = (tail_top - top).clamp_min(LOWEST.value)
        plain = (head - top).exp().sum(1, keepdim=True) + below.exp() * tail_plain
        cooled_head = (head - top) * per_t
        log_tail_sum = below * per_t + tail_sum.log()
        log_normalizer = torch.logaddexp(cooled_head.logsumexp(1, keepdim=True), log_tail_sum)
        log_head, log_tail = cooled_head - log_normalizer, log_tail_sum - log_normalizer
        taught, taught_tail = teacher.log_probs.double(), teacher.log_tail.double()
        kl = weighted(taught.exp(), taught, log_head).sum(1)
        kl = kl + weighted(taught_tail.exp(), taught_tail, log_tail)[:, 0]
        if gradient is not None:
            label_weight = (labels != NO_LABEL).double()[:, None] * self._weights.cross_entropy
            plain_weight = label_weight / plain
            tail_weight = self._weights.kl * (log_tail.exp() - taught_tail.exp()) / tail_sum
            tail_weight = torch.where(tail_sum > 0, tail_weight, 0.0)
            nothing = torch.zeros_like(tail_weight)
            weights = (plain_weight * below.exp(), tail_weight, nothing, label_weight)
            self._write(tail, None, (tail_top[:, 0], nothing[:, 0]), [one[:, 0] for one in weights], labels, gradient)
            of_head = self._weights.kl * (log_head.exp() - taught.exp()) + plain_weight * (head - top).exp()
            of_head -= torch.where(ids == labels[:, None], label_weight, 0.0)
            gradient.scatter_(1, ids, of_head.to(gradient.dtype))
        cross_entropy = self._cross_entropy(student, labels, top[:, 0], plain[:, 0])
        return RowTerms(cross_entropy, kl, (top + plain.log())[:, 0], torch.zeros_like(kl))

    def _sums(self, student: Tensor, teacher: Tensor | None) -> Tensor:
        sums = torch.zeros(len(student), 6, dtype=torch.float64, device=student.device)
        sides = _sides(student, teacher)
        sum_rows[(len(student),)](*sides, sums, self._width, self._per_t, TAUGHT=teacher is not None, **LAUNCH)
        return sums

    def _write(
        self,
        student: Tensor,
        teacher: Tensor | None,
        tops: tuple[Tensor, Tensor],
        weights: SequenceOf[Tensor],
        labels: Tensor,
        gradient: Tensor,
    ) -> None:
        plain, cooled, probs, label = weights
        is_tempered = self._temperature != 1
        if not is_tempered:
            plain, cooled = plain + cooled, torch.zeros_like(cooled)
        target = _flat(gradient)
        write_rows[(len(student),)](
            *_sides(student, teacher),
            torch.stack(tops, 1).float(),
            torch.stack((plain, cooled, probs, label), 1).float(),
            labels.contiguous(),
            target,
            target.stride(0),
            self._width,
            self._per_t,
            TAUGHT=teacher is not None,
            TEMPERED=is_tempered,
            **LAUNCH,
        )
        if target is not gradient:
            gradient.copy_(target)

    def _from_draws(self, student: Tensor, teacher: SampledRows, top: Tensor, cooled: Tensor) -> Tensor:
        """Return the estimate of KL from draws, `log Z - sum(w x) - H`."""
        drawn = (student.gather(1, teacher.token_ids).double() - top[:, None]) * self._per_t
        expected = expected_draw(teacher.weights.double(), drawn)[:, 0]
        return cooled.log() - expected - teacher.entropy[:, 0].double()

    @staticmethod
    def _cross_entropy(student: Tensor, labels: Tensor, top: Tensor, plain: Tensor) -> Tensor:
        at_label = student.gather(1, labels.clamp_min(0)[:, None])[:, 0].double()
        return torch.where(labels != NO_LABEL, plain.log() - (at_label - top), 0.0)


def _flat(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _sides(student: Tensor, teacher: Tensor | None) -> tuple[Tensor, int, Tensor, int]:
    other = student if teacher is None else teacher
    return student, student.stride(0), other, other.stride(0)
