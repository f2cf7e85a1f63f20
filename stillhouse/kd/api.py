"""The loss in three forms: with its gradient, inside autograd, and the gradient alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.errors import VocabularyMismatchError
from stillhouse.kd import checks
from stillhouse.kd.divergences import DivergenceName
from stillhouse.kd.loss import LossAndGradient, Part, check_logits, clear_uncounted, compute, make_part, unaveraged
from stillhouse.kd.options import Options
from stillhouse.kd.teacher import TopKTail
from stillhouse.payloads import OutputHead, Payload


def kd_loss_and_gradient(
    student_logits: Tensor,
    teacher: Payload | Tensor,
    labels: checks.Labels = None,
    *,
    temperature: float,
    alpha: float,
    mask: checks.Mask = None,
    num_valid: int | None = None,
    num_labelled: int | None = None,
    vocabulary_size: int | None = None,
    output_head: OutputHead | None = None,
    top_k_tail: TopKTail = "bucket",
    loss: DivergenceName = "forward_kl",
    jsd_beta: float = 0.5,
    out: Tensor | None = None,
) -> LossAndGradient:
    """Return the distillation loss of R predictions and its exact gradient, from one pass.

        alpha * sum(CE) / num_labelled + (1 - alpha) * T^2 * sum(KL(teacher || student)) / num_valid

    or with another divergence in the KL's place: see `loss`. Sums are float32 whatever the inputs' dtype (float64 where
    one is float64). Both terms are always computed, so that both can be reported, whatever alpha is.

    Args:
        student_logits: `[R, V]`, any float dtype, CPU or CUDA.
        teacher: a payload, or plain logits `[R, N]`, whose row i teaches the student's row i.
        labels: `[R]`, the next token of each row; -100 has no label: its CE is 0, its KL counts. None: no labels.
        temperature: T > 0 divides both sides' logits in the KL. A top-k payload must have been made at it.
        alpha: from 0 to 1, the weight of cross-entropy; `1 - alpha` weighs KL.
        mask: `[R]` bool, True counts. A row that does not count is never read and has gradient 0.
        num_valid: rows that KL is averaged over; by default the rows of this call that count. A trainer gives the
            global batch's, so that the losses of its parts add up.
        num_labelled: the same for cross-entropy: rows that count and have a label.
        vocabulary_size: N, needed where the two sides differ: both are cut to it before softmax.
        output_head: what hidden states are turned into logits with.
        top_k_tail: "bucket" keeps the mass outside a top-k head as one bucket: a lower bound of the full KL.
            "renormalise" drops it and scales the head to 1, as other tools do. Beware: the student is then taught
            that every other token is impossible, and at high temperatures that is most of what the teacher said.
        loss: the divergence, wherever KL stands here: "forward_kl", KL(teacher || student); "reverse_kl",
            KL(student || teacher); "jsd", beta KL(teacher || m) + (1 - beta) KL(student || m) with the mixture
            m = beta teacher + (1 - beta) student (arXiv 2306.13649, eq. 1). The last two need the teacher's whole
            distribution: logits, dense or hidden states.
        jsd_beta: beta, above 0 and below 1; read with "jsd" alone.
        out: `[R, V]`, any float dtype, where the gradient is written; it must not share memory with
            `student_logits`. After an error it holds nothing of meaning.

    Raises:
        VocabularyMismatchError: the sides have different sizes and no `vocabulary_size` that both have.
        ValueError: arguments that do not fit, before anything is computed; or logits that have no loss: a NaN, a row
            of nothing but -inf, a student's -inf where its label stands, or where the divergence is infinite: the
            student's where the teacher has mass (forward KL), the teacher's where the student has (reverse KL).
    """
    options = Options(temperature, alpha, vocabulary_size, output_head, top_k_tail, loss, jsd_beta)
    part = make_part(student_logits, teacher, labels, mask, options)
    valid = checks.check_denominator("num_valid", num_valid, len(part.rows))
    labelled = checks.check_denominator("num_labelled", num_labelled, part.num_labelled)
    gradient = _gradient_like(student_logits, out)
    terms = compute([part], [gradient], options, num_valid=valid, num_labelled=labelled)
    clear_uncounted(gradient, part.rows, part.width)
    return LossAndGradient(terms.loss, terms.cross_entropy, terms.kl, gradient, valid, labelled)


def cross_entropy_and_gradient(
    student_logits: Tensor,
    labels: checks.Labels,
    *,
    num_labelled: int | None = None,
    vocabulary_size: int | None = None,
    out: Tensor | None = None,
) -> LossAndGradient:
    """Return the cross-entropy of R predictions and its exact gradient: what alpha = 1 comes to, with nobody asked.

    Arguments, result and errors as those of `kd_loss_and_gradient`; `kl` is NaN, since no teacher has told it.
    """
    checks.check_vocabulary_size(vocabulary_size)
    check_logits("student_logits", student_logits)
    rows, width = torch.arange(len(student_logits)), vocabulary_size or student_logits.shape[1]
    if width > student_logits.shape[1]:
        raise VocabularyMismatchError(
            f"vocabulary_size {width} is more than the student's {student_logits.shape[1]} logits"
        )
    label_ids = checks.check_labels(labels, len(rows))
    checks.check_label_range(label_ids, width)
    part = Part(student_logits, None, label_ids, rows, rows, width)
    labelled = checks.check_denominator("num_labelled", num_labelled, part.num_labelled)
    gradient = _gradient_like(student_logits, out)
    terms = compute([part], [gradient], Options(1.0, 1.0), num_valid=len(rows), num_labelled=labelled)
    clear_uncounted(gradient, rows, width)
    return LossAndGradient(terms.cross_entropy, terms.cross_entropy, math.nan, gradient, len(rows), labelled)


def kd_logit_gradient(
    student_logits: Tensor,
    teacher: Payload | Tensor,
    labels: checks.Labels = None,
    *,
    temperature: float,
    alpha: float,
    mask: checks.Mask = None,
    vocabulary_size: int | None = None,
    output_head: OutputHead | None = None,
    top_k_tail: TopKTail = "bucket",
    loss: DivergenceName = "forward_kl",
    jsd_beta: float = 0.5,
    out: Tensor | None = None,
) -> Tensor:
    """Return the gradient of each row's own loss, `[R, V]`, not yet averaged.

    Divided by the number of rows that count, it is the derivative of the loss that `kd_loss_and_gradient` reports:
    where some have no label, the cross-entropy's rows are multiplied by `num_valid / num_labelled` for that.
    Arguments and errors as there.
    """
    options = Options(temperature, alpha, vocabulary_size, output_head, top_k_tail, loss, jsd_beta)
    part = make_part(student_logits, teacher, labels, mask, options)
    gradient = _gradient_like(student_logits, out)
    unaveraged([part], [gradient], options)
    return gradient


def kd_loss(
    student_logits: Tensor,
    teacher: Payload | Tensor,
    labels: checks.Labels = None,
    *,
    temperature: float,
    alpha: float,
    mask: checks.Mask = None,
    num_valid: int | None = None,
    num_labelled: int | None = None,
    vocabulary_size: int | None = None,
    output_head: OutputHead | None = None,
    top_k_tail: TopKTail = "bucket",
    loss: DivergenceName = "forward_kl",
    jsd_beta: float = 0.5,
) -> Tensor:
    """Return the loss of `kd_loss_and_gradient` as a scalar that `backward()` can be called on.

    The gradient is made in the same pass as the loss and kept for `backward`; where none is needed, only the loss is
    computed. float32 (float64 for float64 logits), on the logits' device. Arguments and errors as there.
    """
    options = Options(temperature, alpha, vocabulary_size, output_head, top_k_tail, loss, jsd_beta)
    part = make_part(student_logits, teacher, labels, mask, options)
    valid = checks.check_denominator("num_valid", num_valid, len(part.rows))
    labelled = checks.check_denominator("num_labelled", num_labelled, part.num_labelled)
    return differentiable(student_logits, [part], options, valid, labelled)


def differentiable(logits: Tensor, parts: list[Part], options: Options, num_valid: int, num_labelled: int) -> Tensor:
    """Return the loss of parts whose rows are rows of `logits` `[R, V]`, as a node of autograd."""
    wanted = torch.is_grad_enabled() and logits.requires_grad
    loss: Tensor = _Loss.apply(logits, parts, options, num_valid, num_labelled, wanted)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss


class _Loss(torch.autograd.Function):
    """The loss whose backward pass hands out the gradient that its forward pass has made."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, parts: list[Part], options: Options, num_valid: int, num_labelled: int, wanted: bool
    ) -> Tensor:
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format) if wanted else None
        ctx.scale = kept_scale(logits.dtype, options, num_valid, num_labelled)
        terms = compute(
            parts,
            [gradient] * len(parts),
            options,
            num_valid=num_valid,
            num_labelled=num_labelled,
            gradient_scale=ctx.scale,
        )
        if gradient is not None:
            clear_uncounted(gradient, torch.cat([part.rows for part in parts]), parts[0].width)
            ctx.save_for_backward(gradient)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return torch.tensor(terms.loss, dtype=dtype, device=logits.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return times(gradient, grad_output / ctx.scale), None, None, None, None, None


def times(gradient: Tensor, factor: Tensor) -> Tensor:
    """Return a kept gradient times what comes from above: itself where that is 1, which saves a copy of all of it.

    To know that on an accelerator would mean to wait for it.
    """
    if factor.device.type == "cpu" and float(factor) == 1:
        return gradient
    return gradient * factor.to(gradient.dtype)


def kept_scale(dtype: torch.dtype, options: Options, num_valid: int, num_labelled: int) -> float:
    """Return how many times as large a gradient is kept until `backward`, a power of two.

    float16 holds nothing between 0 and 6e-8, where the values of one that is averaged over many rows are; what would
    save them, a GradScaler's factor, comes with `grad_output`. So the average is taken after it, up to 2^14, the
    inverse of which float16 still holds exactly.
    """
    if dtype != torch.float16:
        return 1.0
    rows = min(num_valid, num_labelled or num_valid) / max(1.0, options.temperature)
    return 2.0 ** min(14, int(max(1.0, rows)).bit_length() - 1)


def _gradient_like(logits: Tensor, out: Tensor | None) -> Tensor:
    """Return the tensor that the gradient is written into.

    Raises:
        ValueError: an `out` of another shape, device or kind, or one that lies on the logits.
    """
    if out is None:
        return torch.empty_like(logits, requires_grad=False, memory_format=torch.contiguous_format)
    if out.shape != logits.shape or out.device != logits.device or not out.is_floating_point() or out.requires_grad:
        raise ValueError(
            f"out must be a float tensor of shape {tuple(logits.shape)} on {logits.device} that needs no gradient; "
            f"got {out.dtype} of shape {tuple(out.shape)} on {out.device}"
        )
    if out.numel() and out.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr():
        raise ValueError("out must not share memory with student_logits: rows are read again after they are written")
    return out
