"""The output head's matmul, the loss and all gradients in one, over chunks of rows.

`[R, V]` never exists whole, neither the student's logits nor the teacher's: a chunk's logits are made, its loss and
their gradient computed, the gradient taken back through the head, and the memory used again. What grows with the rows
is their hidden states alone. Knows nothing of how logits become a loss: that is `loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillhouse.kd import checks
from stillhouse.kd.api import kept_scale, times
from stillhouse.kd.divergences import DivergenceName
from stillhouse.kd.loss import Part, compute, make_part
from stillhouse.kd.options import Options
from stillhouse.kd.teacher import TopKTail, take_rows
from stillhouse.payloads import OutputHead, Payload

CHUNK_ELEMENTS = 2**25
"""Logits of a chunk: 128 MiB in float32, as much again for their gradient, and for a teacher's that are rebuilt."""


def head_kd_loss(
    hidden: Tensor,
    head_weight: Tensor,
    teacher: Payload | Tensor,
    labels: checks.Labels = None,
    *,
    temperature: float,
    alpha: float,
    head_bias: Tensor | None = None,
    mask: checks.Mask = None,
    num_valid: int | None = None,
    num_labelled: int | None = None,
    vocabulary_size: int | None = None,
    output_head: OutputHead | None = None,
    top_k_tail: TopKTail = "bucket",
    loss: DivergenceName = "forward_kl",
    jsd_beta: float = 0.5,
    chunk_rows: int | None = None,
) -> Tensor:
    """Return `kd_loss(hidden @ head_weight.T + head_bias, teacher, ...)` without ever holding those logits whole.

    Call `backward()` on it: `hidden`, `head_weight` and `head_bias` get their gradients, those of them that want one.
    They are made in the same pass as the loss, and kept until then. A head that is tied to the embeddings is no special
    case: autograd adds up what the one tensor gets from both places.

    Args:
        hidden: `[R, D]`, any float dtype, in which the matmuls are done: the states that the head would be given, of
            rows that count or not (see `mask`).
        head_weight: `[V, D]`. Its gradient is summed over chunks in float32 where it is narrower.
        teacher: a payload, or plain logits `[R, N]`, whose row i teaches row i. Hidden states need `output_head`, and
            are turned into logits in the same chunks.
        labels: see `kd_loss_and_gradient`, as for all that is not named here.
        temperature: T > 0.
        alpha: from 0 to 1, the weight of cross-entropy; `1 - alpha` weighs KL.
        head_bias: `[V]`.
        mask: `[R]` bool. A row that does not count is never read, and costs nothing.
        num_valid: rows that KL is averaged over.
        num_labelled: rows that cross-entropy is averaged over.
        vocabulary_size: N; beyond it no logits are made, and the head gets a gradient of 0.
        output_head: the teacher's own.
        top_k_tail: "bucket" or "renormalise".
        loss: the divergence, wherever KL stands here.
        jsd_beta: read with "jsd" alone.
        chunk_rows: rows whose logits exist at once; by default as many as have 2^25 logits.

    Raises:
        VocabularyMismatchError: the two sides have different sizes.
        ValueError: shapes or arguments that do not fit, or logits that have no loss.
    """
    options = Options(temperature, alpha, vocabulary_size, output_head, top_k_tail, loss, jsd_beta)
    _check_head(hidden, head_weight, head_bias)
    if chunk_rows is not None and (isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int) or chunk_rows < 1):
        raise ValueError(
            f"chunk_rows must be an integer of at least 1, or None for a size of our own; got {chunk_rows!r}"
        )
    # Logits of which there is only the shape: enough to check all that is checked before anything is computed.
    shape = torch.empty(len(hidden), len(head_weight), dtype=hidden.dtype, device="meta")
    part = make_part(shape, teacher, labels, mask, options)
    task = _Task(
        part,
        options,
        checks.check_denominator("num_valid", num_valid, len(part.rows)),
        checks.check_denominator("num_labelled", num_labelled, part.num_labelled),
        chunk_rows or max(1, CHUNK_ELEMENTS // part.width),
    )
    tensors = (hidden, head_weight, head_bias)
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors)
    value: Tensor = _HeadLoss.apply(*tensors, task, wanted)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return value


@dataclass(frozen=True, slots=True)
class _Task:
    """What is computed: the part's `student` is a shape without logits."""

    part: Part
    options: Options
    num_valid: int
    num_labelled: int
    chunk_rows: int


class _Head:
    """The first N rows of a head, and the sums of their gradients over the chunks."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, width: int, dtype: torch.dtype, wanted: tuple[bool, ...]
    ) -> None:
        self.weight = weight.detach()[:width].to(dtype)
        self.bias = None if bias is None else bias.detach()[:width].to(dtype)
        self._wants_hidden = wanted[0]
        self.weight_gradient = _sums(weight) if wanted[1] else None
        self.bias_gradient = _sums(bias) if wanted[2] and bias is not None else None
        self._width = width

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, self.weight, self.bias)

    def back(self, gradient: Tensor, hidden: Tensor) -> Tensor | None:
        """Add a chunk's share to the sums; return the gradient of its hidden states, if that is wanted."""
        if self.weight_gradient is not None:
            sums = self.weight_gradient[: self._width]
            if sums.dtype == gradient.dtype:
                sums.addmm_(gradient.T, hidden)
            else:
                sums.add_(gradient.T @ hidden)
        if self.bias_gradient is not None:
            self.bias_gradient[: self._width] += gradient.sum(0, dtype=self.bias_gradient.dtype)
        return gradient @ self.weight if self._wants_hidden else None


class _HeadLoss(torch.autograd.Function):
    """The loss whose backward pass hands out the gradients that its forward pass has made."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _Task, wanted: tuple[bool, ...]
    ) -> Tensor:
        part, options = task.part, task.options
        ctx.scale = kept_scale(hidden.dtype, options, task.num_valid, task.num_labelled)
        hidden_gradient = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
        total, out = 0.0, None
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head(weight, bias, part.width, hidden.dtype, wanted)
            for start in range(0, len(part.rows), task.chunk_rows):
                rows = part.rows[start : start + task.chunk_rows]
                states = take_rows(hidden.detach(), rows)
                logits = head.logits(states)
                if any(wanted):
                    out = torch.empty_like(logits) if out is None else out[: len(rows)]
                chunk = Part(
                    logits,
                    part.teacher,
                    part.labels[rows],
                    torch.arange(len(rows)),
                    part.teacher_rows[start : start + task.chunk_rows],
                    part.width,
                    called=rows,
                )
                terms = compute(
                    [chunk],
                    [out],
                    options,
                    num_valid=task.num_valid,
                    num_labelled=task.num_labelled,
                    gradient_scale=ctx.scale,
                )
                total += terms.loss
                if out is not None:
                    of_states = head.back(out, states)
                    if hidden_gradient is not None and of_states is not None:
                        hidden_gradient.index_copy_(0, rows.to(hidden.device), of_states)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(hidden_gradient, head.weight_gradient, head.bias_gradient)
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        return torch.tensor(total, dtype=dtype, device=hidden.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        factor = grad_output / ctx.scale
        hidden, weight, bias = (None if gradient is None else times(gradient, factor) for gradient in ctx.saved_tensors)
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            hidden,
            None if weight is None else weight.to(weight_dtype),
            None if bias is None else bias.to(bias_dtype),
            None,
            None,
        )


def _sums(parameter: Tensor) -> Tensor:
    wide = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
    return torch.zeros_like(parameter, dtype=wide, memory_format=torch.contiguous_format)


def _check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse states and a head that do not fit each other, naming the argument and what it is.

    Raises:
        ValueError: not matrices of floats on one device, of one inner width, or a bias of another length.
    """
    for name, tensor in (("hidden", hidden), ("head_weight", weight)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 2 or not tensor.is_floating_point():
            found = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a float tensor of two dimensions; got {found}")
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"head_weight must be [vocabulary, {hidden.shape[1]}], the hidden states' width; got {tuple(weight.shape)}"
        )
    if bias is not None and (not bias.is_floating_point() or bias.shape != weight.shape[:1]):
        raise ValueError(
            f"head_bias must be a float tensor of the head's {weight.shape[0]} ids; got {bias.dtype} of shape "
            f"{tuple(bias.shape)}"
        )
    for name, part in (("head_weight", weight), ("head_bias", bias)):
        if part is not None and part.device != hidden.device:
            raise ValueError(f"{name} must be on hidden's device {hidden.device}; it is on {part.device}")
