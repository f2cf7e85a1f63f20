"""Loss and gradient of a few rows at a time: the one place where the arithmetic of distillation is done.

A chunk of rows is small enough to stay in a core's cache while about fifteen passes go over it in buffers that are
made once; only the student's logits, the teacher's and the gradient travel through memory. Knows nothing of
payloads, masks, vocabularies or denominators: it is handed rows of one width, and the weights of the two terms.

Legend: r rows of the chunk, N vocabulary entries, K kept ids. `docs/mathematics.md` derives the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.kd.divergences import FORWARD_KL, Divergence, Sides, scored

NO_LABEL = -100
"""The label of a row that has none; its cross-entropy is 0. The value that torch and transformers use."""

CPU_CHUNK_ELEMENTS = 2**17
"""Elements of a chunk on CPU: few enough for its five buffers to stay near the core, enough to pay for the calls.

`python -m benchmarks run kd_chunk` measures it: flat between 2^17 and 2^18, whatever the vocabulary.
"""

DEVICE_CHUNK_ELEMENTS = 2**25
"""Elements of a chunk on an accelerator: five float32 buffers of it are 640 MiB, and few kernels are launched."""


@dataclass(frozen=True, slots=True)
class DenseRows:
    """All logits of the teacher, `[r, N]`, any float dtype."""

    logits: Tensor


@dataclass(frozen=True, slots=True)
class TopKRows:
    """The teacher's head and its one tail bucket; `exp(log_probs)` and `exp(log_tail)` of a row sum to 1.

    `token_ids` is `[r, K]` int64; `log_probs` `[r, K]` and `log_tail` `[r, 1]` are tempered, in the accumulation dtype.
    """

    token_ids: Tensor
    log_probs: Tensor
    log_tail: Tensor


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Draws from the teacher at T: `weights` of a row are counts / draws and sum to 1; those of padding are 0.

    `token_ids` is `[r, K]` int64 and `weights` `[r, K]`; `entropy` `[r, 1]`, in nats, is the teacher's own at T.
    """

    token_ids: Tensor
    weights: Tensor
    entropy: Tensor


TeacherRows = DenseRows | TopKRows | SampledRows


@dataclass(frozen=True, slots=True)
class RowTerms:
    """What a chunk comes to, `[r]` each. A value that is not finite tells what is wrong with its row.

    `kl` is whichever divergence was asked for, without its T^2.
    """

    cross_entropy: Tensor
    kl: Tensor
    student_log_normalizer: Tensor
    teacher_log_normalizer: Tensor


@dataclass(frozen=True, slots=True)
class RowWeights:
    """What one row's terms are multiplied by in the gradient: `alpha / num_labelled`, `(1 - alpha) T / num_valid`."""

    cross_entropy: float
    kl: float


class RowKernel:
    """The fused loss and gradient, over chunks of at most `max_rows` rows of N logits."""

    def __init__(
        self,
        width: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        temperature: float,
        weights: RowWeights,
        divergence: Divergence = FORWARD_KL,
        chunk_elements: int | None = None,
    ) -> None:
        on_cpu = device.type == "cpu"
        elements = chunk_elements or (CPU_CHUNK_ELEMENTS if on_cpu else DEVICE_CHUNK_ELEMENTS)
        self.max_rows = max(1, elements // max(1, width))
        self._width = width
        self._dtype = dtype
        self._device = device
        self._temperature = temperature
        self._weights = weights
        self._divergence = divergence
        # Looking at a value costs a round trip on an accelerator: there the path that bears -inf is always taken.
        self._optimistic = on_cpu
        self._buffers: dict[str, Tensor] = {}

    def run(self, student: Tensor, teacher: TeacherRows | None, labels: Tensor, gradient: Tensor | None) -> RowTerms:
        """Return the terms of one chunk, and write its gradient.

        Args:
            student: `[r, N]`, any float dtype.
            teacher: its rows, or None where only the cross-entropy counts.
            labels: `[r]` int64, on the student's device; `NO_LABEL` or an id below N.
            gradient: `[r, N]`, any float dtype, overwritten; None for the loss alone.
        """
        shifted, top = self._shift(student, "student")
        plain = torch.exp(shifted, out=self._buffer("plain", len(student)))
        plain_sum = plain.sum(-1, keepdim=True)
        labelled = (labels != NO_LABEL).unsqueeze(1)
        index = labels.clamp_min(0).unsqueeze(1)
        cross_entropy = torch.where(labelled, plain_sum.log() - shifted.gather(1, index), 0.0)
        label_weight = labelled.to(self._dtype) * self._weights.cross_entropy
        target = self._target(gradient)
        # At T = 1 both terms share one softmax of the student: the KL's pass writes the gradient of both.
        plain_weight = label_weight / plain_sum

        kl = torch.zeros_like(plain_sum)
        teacher_log_normalizer = torch.zeros_like(plain_sum)
        if teacher is None:
            if target is not None:
                torch.mul(plain, plain_weight, out=target)
        else:
            shared_weight = plain_weight if self._temperature == 1 else torch.zeros_like(plain_weight)
            match teacher:
                case DenseRows():
                    kl, teacher_log_normalizer = self._dense(shifted, plain, plain_sum, teacher, shared_weight, target)
                case TopKRows():
                    kl = self._top_k(shifted, teacher, shared_weight, target)
                case SampledRows():
                    kl = self._sampled(shifted, plain, plain_sum, teacher, shared_weight, target)
            if target is not None and self._temperature != 1 and self._weights.cross_entropy != 0:
                target.addcmul_(plain, plain_weight)
        if target is not None and gradient is not None:
            target.scatter_add_(1, index, -label_weight.to(target.dtype))
            if target is not gradient:
                gradient.copy_(target)
        student_log_normalizer = top + plain_sum.log()
        return RowTerms(*(term[:, 0] for term in (cross_entropy, kl, student_log_normalizer, teacher_log_normalizer)))

    def _dense(
        self,
        shifted: Tensor,
        plain: Tensor,
        plain_sum: Tensor,
        teacher: DenseRows,
        shared_weight: Tensor,
        target: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the divergence and the teacher's log-normaliser, `[r, 1]`; overwrite `target` with the gradient."""
        tempered, tempered_sum = self._tempered(shifted, plain, plain_sum)
        taught, top = self._shift(teacher.logits, "teacher")
        if self._temperature != 1:
            taught.mul_(1 / self._temperature)
        probs = torch.exp(taught, out=self._buffer("probs", len(shifted)))
        probs_sum = probs.sum(-1, keepdim=True)
        if self._divergence.name != "forward_kl":
            spare = self._buffer("spare", len(shifted))
            sides = Sides(shifted, taught, tempered, probs, tempered_sum, probs_sum, spare)
            return self._scored(sides, shared_weight, target), top + probs_sum.log()
        difference = taught.sub_(shifted)
        expected = self._expectation(probs, difference, teacher.logits, scratch=shifted)
        # One logarithm of the ratio: the difference of two logarithms of about ten would lose two digits of a small KL.
        kl = expected / probs_sum + (tempered_sum / probs_sum).log()
        if target is not None:
            torch.mul(tempered, self._weights.kl / tempered_sum + shared_weight, out=target)
            target.addcmul_(probs, -self._weights.kl / probs_sum)
        return kl, top + probs_sum.log()

    def _scored(self, sides: Sides, shared_weight: Tensor, target: Tensor | None) -> Tensor:
        """Return a divergence that has a score, `[r, 1]`; overwrite `target` with its gradient."""
        result = scored(self._divergence, sides)
        if target is not None:
            weight = result.values.sub_(result.mean).mul_(-self._weights.kl / sides.student_sum).add_(shared_weight)
            torch.mul(sides.student_exp, weight, out=target)
        return result.divergence

    def _sampled(
        self,
        shifted: Tensor,
        plain: Tensor,
        plain_sum: Tensor,
        teacher: SampledRows,
        shared_weight: Tensor,
        target: Tensor | None,
    ) -> Tensor:
        """Return the estimate of KL from draws, `[r, 1]`; overwrite `target` with its gradient.

        `log Z - sum(w x) - H`, with x the student's tempered logits and w the share of each id among the draws: in
        expectation w is softmax(t / T), and this the full KL.
        """
        tempered, tempered_sum = self._tempered(shifted, plain, plain_sum)
        drawn = shifted.gather(1, teacher.token_ids)
        expected = expected_draw(teacher.weights, drawn)
        if target is not None:
            torch.mul(tempered, self._weights.kl / tempered_sum + shared_weight, out=target)
            target.scatter_add_(1, teacher.token_ids, (teacher.weights * -self._weights.kl).to(target.dtype))
        return tempered_sum.log() - expected - teacher.entropy

    def _tempered(self, shifted: Tensor, plain: Tensor, plain_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Divide the shifted logits by T in place; return their exponentials and the sums of those, `[r, 1]`."""
        if self._temperature == 1:
            return plain, plain_sum
        shifted.mul_(1 / self._temperature)
        tempered = torch.exp(shifted, out=self._buffer("tempered", len(shifted)))
        return tempered, tempered.sum(-1, keepdim=True)

    def _expectation(self, probs: Tensor, difference: Tensor, logits: Tensor, scratch: Tensor) -> Tensor:
        """Return the row sums of `probs * difference`, where an id that the teacher rules out (-inf) counts 0."""
        if self._optimistic:
            expected = torch.mul(probs, difference, out=scratch).sum(-1, keepdim=True)
            if bool(expected.isfinite().all()):
                return expected
        difference.masked_fill_(logits == -torch.inf, 0.0)
        return torch.mul(probs, difference, out=scratch).sum(-1, keepdim=True)

    def _top_k(self, shifted: Tensor, teacher: TopKRows, shared_weight: Tensor, target: Tensor | None) -> Tensor:
        """Return the KL of head and tail bucket, `[r, 1]`; overwrite `target` with its gradient."""
        head_shared = shifted.gather(1, teacher.token_ids)
        if self._temperature != 1:
            shifted.mul_(1 / self._temperature)
        head = shifted.gather(1, teacher.token_ids)
        # The tail has a log-normaliser of its own, from its own largest logit: `1 - sum(head)` would be rounding.
        tail = shifted.scatter_(1, teacher.token_ids, -torch.inf)
        tail_top = tail.amax(-1, keepdim=True).clamp_min(torch.finfo(self._dtype).min)
        tail_exp = torch.exp(tail.sub_(tail_top), out=self._buffer("tempered", len(shifted)))
        tail_sum = tail_exp.sum(-1, keepdim=True)
        log_tail_sum = tail_top + tail_sum.log()
        log_normalizer = torch.logaddexp(torch.logsumexp(head, -1, keepdim=True), log_tail_sum)
        log_head, log_tail = head - log_normalizer, log_tail_sum - log_normalizer
        probs, tail_prob = teacher.log_probs.exp(), teacher.log_tail.exp()
        kl = weighted(probs, teacher.log_probs, log_head).sum(-1, keepdim=True)
        kl = kl + weighted(tail_prob, teacher.log_tail, log_tail)
        if target is not None:
            tail_weight = self._weights.kl * (log_tail.exp() - tail_prob) / tail_sum
            tail_weight = torch.where(tail_sum > 0, tail_weight, 0.0) + shared_weight * tail_top.exp()
            torch.mul(tail_exp, tail_weight, out=target)
            head_gradient = self._weights.kl * (log_head.exp() - probs) + shared_weight * head_shared.exp()
            target.scatter_(1, teacher.token_ids, head_gradient)
        return kl

    def _shift(self, logits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return the logits less their row's largest, in a buffer, and those largest, `[r, 1]`."""
        buffer = self._buffer(name, len(logits))
        if logits.dtype != self._dtype:
            logits = buffer.copy_(logits)
        top = logits.amax(-1, keepdim=True)
        return torch.sub(logits, top, out=buffer), top

    def _target(self, gradient: Tensor | None) -> Tensor | None:
        """Return where the gradient is summed up: in place, unless its dtype would round every step."""
        if gradient is None or gradient.dtype == self._dtype:
            return gradient
        return self._buffer("gradient", len(gradient))

    def _buffer(self, name: str, rows: int) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(self.max_rows, self._width, dtype=self._dtype, device=self._device)
        return self._buffers[name][:rows]


def expected_draw(weights: Tensor, drawn: Tensor) -> Tensor:
    """Return the row sums `[r, 1]` of `w x`, 0 where nothing was drawn (padding), even of a student's -inf."""
    return torch.where(weights > 0, weights * drawn, 0.0).sum(-1, keepdim=True)


def weighted(probs: Tensor, log_probs: Tensor, log_student: Tensor) -> Tensor:
    """Return `p (log p - log q)`, 0 where the teacher has no mass at all."""
    return torch.where(log_probs == -torch.inf, 0.0, probs * (log_probs - log_student))
