"""A block of rows from arguments to loss and gradient: what counts, by how much, and what is wrong with a row.

Everything is checked before anything is computed; then the kernel runs over chunks of the rows that count. Rows
that a mask leaves out are never read, so they may hold anything, NaN included.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.kd import checks
from stillhouse.kd.divergences import DivergenceName
from stillhouse.kd.kernels import make_kernel
from stillhouse.kd.options import Options
from stillhouse.kd.rows import NO_LABEL, RowTerms, RowWeights
from stillhouse.kd.teacher import check_whole, num_rows, shared_width, take_rows, teacher_source
from stillhouse.payloads import DenseLogits, Payload


@dataclass(frozen=True, slots=True)
class LossAndGradient:
    """A loss and its exact derivative with respect to the student's logits.

    `loss = alpha * cross_entropy + (1 - alpha) * kl`: alpha weighs cross-entropy. `kl` is the divergence that was asked
    for, with its T^2; both terms are averages already, over `num_labelled` and `num_valid` rows. `gradient` is
    `[R, V]`, in the dtype of the logits.
    """

    loss: float
    cross_entropy: float
    kl: float
    gradient: Tensor
    num_valid: int
    num_labelled: int


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one logits tensor that are learnt from one answer.

    `rows` and `teacher_rows` (rising CPU indices, one for each row that counts) say which row of `student` `[R, V]`
    is taught by which of `teacher`; `labels` is `[R]` int64 on CPU. Without a teacher only the labels count.
    `called` says what an error calls `rows`, where their caller knows them by other numbers.
    """

    student: Tensor
    teacher: Payload | Tensor | None
    labels: Tensor
    rows: Tensor
    teacher_rows: Tensor
    width: int
    called: Tensor | None = None

    @property
    def num_labelled(self) -> int:
        """Rows that count and have a label."""
        return int((self.labels[self.rows] != NO_LABEL).sum())


@dataclass(frozen=True, slots=True)
class Terms:
    """A loss and its two terms, averaged; `kl` is the divergence that was asked for, with its T^2."""

    loss: float
    cross_entropy: float
    kl: float


def make_part(
    student: Tensor, teacher: Payload | Tensor, labels: checks.Labels, mask: checks.Mask, options: Options
) -> Part:
    """Return the part of rows that correspond one to one, checked.

    Raises:
        ValueError: shapes, dtypes or labels that do not fit.
        VocabularyMismatchError: two widths, and no `vocabulary_size` that both have.
    """
    check_whole(teacher, options.loss)
    check_logits("student_logits", student)
    if not isinstance(teacher, Payload):
        check_logits("teacher, where it is no payload,", teacher)
    rows = student.shape[0]
    if num_rows(teacher) != rows:
        raise ValueError(
            f"the teacher's answer must have one row for each of the student's {rows}; got {num_rows(teacher)}"
        )
    counts = checks.check_mask(mask, rows)
    label_ids = checks.check_labels(labels, rows).masked_fill(~counts, NO_LABEL)
    width = shared_width(student.shape[1], teacher, options.output_head, options.vocabulary_size)
    checks.check_label_range(label_ids, width)
    selected = counts.nonzero()[:, 0]
    return Part(student, teacher, label_ids, selected, selected, width)


def check_logits(name: str, logits: Tensor) -> None:
    """Refuse what is not `[R, V]` of floats."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
        found = (
            f"{logits.dtype} of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        )
        raise ValueError(f"{name} must be a float tensor [rows, vocabulary]; got {found}")


@torch.no_grad()  # a teacher, or its head, may want a gradient of its own: none comes from here
def compute(
    parts: SequenceOf[Part],
    gradients: SequenceOf[Tensor | None],
    options: Options,
    *,
    num_valid: int,
    num_labelled: int,
    gradient_scale: float = 1.0,
) -> Terms:
    """Return the loss of all parts together, and write each part's gradient into the tensor of its place.

    A gradient is `gradient_scale` times the derivative of the returned loss. Several parts may share a tensor if
    their rows differ; rows that do not count are left as they are.

    Raises:
        ValueError: a row of logits that has no loss: NaN, all -inf, or -inf where the label stands or the teacher
            has mass. What was written of the gradients by then means nothing.
    """
    weights = RowWeights(
        cross_entropy=gradient_scale * options.alpha / num_labelled if num_labelled else 0.0,
        kl=gradient_scale * (1 - options.alpha) * options.temperature / num_valid if num_valid else 0.0,
    )
    sums = torch.zeros(2, dtype=torch.float64)
    for part, gradient in zip(parts, gradients, strict=True):
        if len(part.rows):
            sums += _run_part(part, gradient, options, weights)
    cross_entropy = float(sums[0]) / num_labelled if num_labelled else 0.0
    kl = options.temperature**2 * float(sums[1]) / num_valid if num_valid else 0.0
    return Terms(options.alpha * cross_entropy + (1 - options.alpha) * kl, cross_entropy, kl)


def unaveraged(parts: SequenceOf[Part], gradients: SequenceOf[Tensor], options: Options) -> float:
    """Return the averaged loss of parts, and write their gradients before the division by `num_valid`.

    The cross-entropy's share of each row is multiplied by `num_valid / num_labelled`, so that this one division by
    whoever applies the gradient gives the derivative of the loss. Each part owns its tensor.
    """
    num_valid = sum(len(part.rows) for part in parts)
    num_labelled = sum(part.num_labelled for part in parts)
    terms = compute(parts, gradients, options, num_valid=num_valid, num_labelled=num_labelled, gradient_scale=num_valid)
    for part, gradient in zip(parts, gradients, strict=True):
        clear_uncounted(gradient, part.rows, part.width)
    return terms.loss


def clear_uncounted(gradient: Tensor, rows: Tensor, width: int) -> None:
    """Set to 0 the rows of a gradient that are not among `rows` (CPU indices), and the ids from `width` upwards."""
    gradient[:, width:] = 0
    if len(rows) < len(gradient):
        uncounted = torch.ones(len(gradient), dtype=torch.bool).index_fill_(0, rows, False)
        gradient.index_fill_(0, uncounted.nonzero()[:, 0].to(gradient.device), 0)


def _run_part(part: Part, gradient: Tensor | None, options: Options, weights: RowWeights) -> Tensor:
    """Return the sums of cross-entropy and KL, `[2]` float64 on CPU."""
    student, device = part.student.detach()[:, : part.width], part.student.device
    dtype = _accumulation_dtype(part.student, part.teacher)
    kernel = make_kernel(
        part.width,
        dtype=dtype,
        device=device,
        temperature=options.temperature,
        weights=weights,
        divergence=options.divergence,
    )
    source = None
    if part.teacher is not None:
        source = teacher_source(
            part.teacher,
            part.teacher_rows,
            width=part.width,
            temperature=options.temperature,
            output_head=options.output_head,
            top_k_tail=options.top_k_tail,
            dtype=dtype,
            device=device,
        )
    labels = part.labels[part.rows].to(device)
    terms = []
    for start in range(0, len(part.rows), kernel.max_rows):
        rows = part.rows[start : start + kernel.max_rows]
        stop = start + len(rows)
        teacher = None if source is None else source.chunk(start, stop)
        target = _gradient_rows(gradient, rows, part.width)
        terms.append(kernel.run(take_rows(student, rows), teacher, labels[start:stop], target))
        if gradient is not None and target is not None and not _is_view(rows):
            gradient[:, : part.width].index_copy_(0, rows.to(device), target)
    return _checked_sums(terms, part, options.loss)


def _gradient_rows(gradient: Tensor | None, rows: Tensor, width: int) -> Tensor | None:
    """Return where a chunk's gradient is written: in place where its rows follow each other, else a spare."""
    if gradient is None:
        return None
    if _is_view(rows):
        return take_rows(gradient[:, :width], rows)
    return gradient.new_empty(len(rows), width)


def _is_view(rows: Tensor) -> bool:
    return int(rows[-1]) - int(rows[0]) == len(rows) - 1


def _checked_sums(terms: list[RowTerms], part: Part, loss: DivergenceName) -> Tensor:
    """Return the sums of all rows once every row is known to be sound."""
    table = torch.stack(
        [
            torch.cat([getattr(term, name) for term in terms])
            for name in ("student_log_normalizer", "teacher_log_normalizer", "cross_entropy", "kl")
        ]
    )
    table = table.double().cpu()
    wrong = ~table.isfinite()
    if bool(wrong.any()):
        row = int(wrong.any(0).nonzero()[0])
        kind = int(wrong[:, row].nonzero()[0])
        label = int(part.labels[part.rows[row]])
        called = part.rows if part.called is None else part.called
        _refuse(kind, int(called[row]), int(part.teacher_rows[row]), label, loss)
    return table[2:].sum(1)


def _refuse(kind: int, row: int, teacher_row: int, label: int, loss: DivergenceName) -> None:
    no_normalizer = "has no finite log-normaliser: it holds a NaN or +inf, or nothing but -inf"
    match kind:
        case 0:
            raise ValueError(f"row {row} of the student's logits {no_normalizer}")
        case 1:
            raise ValueError(f"row {teacher_row} of the teacher's logits {no_normalizer}")
        case 2:
            raise ValueError(f"row {row} of the student's logits is -inf at its label {label}")
        case _ if loss == "reverse_kl":
            raise ValueError(
                f"row {teacher_row} of the teacher's logits is -inf where the student's row {row} has mass: their "
                "reverse KL, KL(student || teacher), is infinite; use loss='forward_kl' or 'jsd', which bear it"
            )
        case _:
            raise ValueError(
                f"row {row} of the student's logits is -inf where the teacher's row {teacher_row} has mass, or the "
                "teacher's answer holds a NaN: their KL is not finite"
            )


def _accumulation_dtype(student: Tensor, teacher: Payload | Tensor | None) -> torch.dtype:
    """float32 for every narrower dtype; float64 where one side came in it."""
    logits = teacher.logits if isinstance(teacher, DenseLogits) else teacher
    wide = student.dtype == torch.float64 or (isinstance(logits, Tensor) and logits.dtype == torch.float64)
    return torch.float64 if wide else torch.float32
