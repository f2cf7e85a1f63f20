"""One step of distillation between the two protocols: ask the teacher, run the student, return the gradients.

Knows nothing of models or transports: the teacher is a provider, the student a function from ids to logits.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

import torch
from torch import Tensor

from stillhouse.encodings import Dense, Encoding, Hidden
from stillhouse.kd import checks
from stillhouse.kd.divergences import DivergenceName
from stillhouse.kd.loss import check_logits, make_part, unaveraged
from stillhouse.kd.options import Options
from stillhouse.kd.rows import NO_LABEL
from stillhouse.kd.teacher import TopKTail, check_whole, num_rows
from stillhouse.payloads import OutputHead, Payload, concatenate
from stillhouse.providers import TeacherLogitsProvider, TokenBatch
from stillhouse.request import All, Last, Positions


def kd_step(
    teacher: TeacherLogitsProvider,
    input_ids: TokenBatch,
    labels: checks.Labels,
    temperature: float,
    alpha: float,
    compute_student_logits: Callable[[TokenBatch], Tensor],
    *,
    encoding: Encoding | None = None,
    vocabulary_size: int | None = None,
    output_head: OutputHead | None = None,
    top_k_tail: TopKTail = "bucket",
    loss: DivergenceName = "forward_kl",
    jsd_beta: float = 0.5,
) -> tuple[float, Tensor | list[Tensor]]:
    """Return the loss of a batch at each sequence's last position, and the gradients `[B, V]` of its rows.

    The teacher is asked once, for the whole batch. The loss is the batch's average; the gradients are not averaged
    yet: whoever applies them divides by B, and that gives the derivative of the loss (rows without a label do not
    count in the cross-entropy's average; its gradients are multiplied by `B / num_labelled` for that).

    Args:
        teacher: who is asked.
        input_ids: B sequences of ids, of any lengths.
        labels: `[B]`, the token that follows each sequence; -100: none, its cross-entropy is 0 and its KL counts.
        temperature: T > 0.
        alpha: from 0 to 1, the weight of cross-entropy; `1 - alpha` weighs KL.
        compute_student_logits: from `input_ids` to `[B, V]`, the student's logits at each last position.
        encoding: what the teacher is asked for; by default every logit.
        vocabulary_size: N, needed where teacher and student differ: both are cut to it before softmax.
        output_head: what hidden states are turned into logits with; by default the teacher is asked for it.
        top_k_tail: see `kd_loss_and_gradient`.
        loss: the divergence, wherever KL stands here: see there.
        jsd_beta: see there.

    Returns:
        The loss and the gradients; `(0.0, [])` for an empty batch, for which nobody is asked.

    Raises:
        VocabularyMismatchError: the two sides have different sizes.
        ValueError: arguments that do not fit, before anybody is asked; or logits that have no loss.
        TeacherError: the teacher has no answer.
    """
    options = Options(temperature, alpha, vocabulary_size, output_head, top_k_tail, loss, jsd_beta)
    targets = checks.check_labels(labels, len(input_ids))
    if len(input_ids) == 0:  # a tensor of ids has no truth of its own
        return 0.0, []
    checks.check_label_range(targets, vocabulary_size or teacher.describe().vocabulary_size)
    options = with_head(options, teacher, encoding)
    payloads = _ask(teacher, input_ids, Last(), encoding, options)
    student = compute_student_logits(input_ids)
    check_logits("the student's logits", student)
    if len(student) != len(input_ids):
        raise ValueError(f"the student must answer one row per sequence, {len(input_ids)}; got {len(student)}")
    part = make_part(student, concatenate(payloads), targets, None, options)
    gradient = torch.empty_like(student, requires_grad=False, memory_format=torch.contiguous_format)
    return unaveraged([part], [gradient], options), gradient


def kd_step_per_position(
    teacher: TeacherLogitsProvider,
    input_ids: TokenBatch,
    labels: SequenceOf[checks.Labels],
    temperature: float,
    alpha: float,
    compute_student_logits: Callable[[TokenBatch], SequenceOf[Tensor]],
    *,
    masks: SequenceOf[checks.Mask] | None = None,
    encoding: Encoding | None = None,
    vocabulary_size: int | None = None,
    output_head: OutputHead | None = None,
    top_k_tail: TopKTail = "bucket",
    loss: DivergenceName = "forward_kl",
    jsd_beta: float = 0.5,
) -> tuple[float, list[Tensor]]:
    """Return the loss of every position of a batch, and one gradient `[L_i, V]` for each sequence.

    A batch of B sequences of L ids is B * L predictions; lengths may differ. `labels` and `masks` have one entry for
    each sequence: `[L_i]` next tokens (-100: none), and `[L_i]` bools (False: the position counts in neither term).
    The loss is the average over the whole batch, not over sequences; the gradients are divided by the number of
    positions that count by whoever applies them. All else as in `kd_step`.

    Raises:
        VocabularyMismatchError: the two sides have different sizes.
        ValueError: arguments that do not fit, before anybody is asked; or logits that have no loss; or a side that
            answered with fewer rows than positions: a last position never stands in for a sequence.
        TeacherError: the teacher has no answer.
    """
    options = Options(temperature, alpha, vocabulary_size, output_head, top_k_tail, loss, jsd_beta)
    _check_count("labels", labels, input_ids)
    if masks is not None:
        _check_count("masks", masks, input_ids)
    targets = [checks.check_labels(row, len(ids)) for row, ids in zip(labels, input_ids, strict=True)]
    counts = [
        checks.check_mask(row, len(ids)) for row, ids in zip(masks or [None] * len(input_ids), input_ids, strict=True)
    ]
    if len(input_ids) == 0:  # a tensor of ids has no truth of its own
        return 0.0, []
    width = vocabulary_size or teacher.describe().vocabulary_size
    for index, (row, count) in enumerate(zip(targets, counts, strict=True)):
        checks.check_label_range(row.masked_fill(~count, NO_LABEL), width, f"labels[{index}]")
    options = with_head(options, teacher, encoding)
    payloads = _ask(teacher, input_ids, All(), encoding, options)
    students = list(compute_student_logits(input_ids))
    _check_count("the student's logits", students, input_ids)
    for index, student in enumerate(students):
        check_logits(f"the student's logits[{index}]", student)
    for index, (ids, payload, student) in enumerate(zip(input_ids, payloads, students, strict=True)):
        for who, rows in (("teacher", num_rows(payload)), ("student", len(student))):
            if rows != len(ids):
                raise ValueError(f"the {who} must answer all {len(ids)} positions of sequence {index}; got {rows} rows")
    parts = [
        make_part(student, payload, row, count, options)
        for student, payload, row, count in zip(students, payloads, targets, counts, strict=True)
    ]
    gradients = [
        torch.empty_like(student, requires_grad=False, memory_format=torch.contiguous_format) for student in students
    ]
    return unaveraged(parts, gradients, options), gradients


def with_head(options: Options, teacher: TeacherLogitsProvider, encoding: Encoding | None) -> Options:
    """Return the options with the teacher's own output head, where hidden states are asked for and none was given.

    Raises:
        InvalidRequestError: an encoding that tells too little for the loss.
    """
    check_whole(encoding, options.loss)
    if not isinstance(encoding, Hidden) or options.output_head is not None:
        return options
    return replace(options, output_head=teacher.output_head())


def _ask(
    teacher: TeacherLogitsProvider,
    input_ids: TokenBatch,
    positions: Positions,
    encoding: Encoding | None,
    options: Options,
) -> tuple[Payload, ...]:
    payloads = teacher.logits(
        input_ids,
        encoding=encoding or Dense(),
        positions=positions,
        temperature=options.temperature,
        vocabulary_size=options.vocabulary_size or 0,
    )
    _check_count("the teacher's payloads", payloads, input_ids)
    if isinstance(positions, Last):
        for index, payload in enumerate(payloads):
            if num_rows(payload) != 1:
                raise ValueError(
                    f"the teacher must answer one row per sequence; for sequence {index} it gave {num_rows(payload)}"
                )
    return payloads


def _check_count(name: str, given: SequenceOf[object], input_ids: TokenBatch) -> None:
    if len(given) != len(input_ids):
        raise ValueError(f"{name} must have one entry per sequence, {len(input_ids)}; got {len(given)}")
