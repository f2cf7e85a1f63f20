"""A transformers batch as it is: unshifted labels, padding on either side, `num_items_in_batch`.

The off-by-one is here and nowhere else: the logits at column j predict the label at column j + 1.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Literal

import torch
from torch import Tensor

from stillhouse.encodings import Dense, Encoding
from stillhouse.errors import InvalidRequestError
from stillhouse.kd import checks
from stillhouse.kd.api import differentiable
from stillhouse.kd.divergences import DivergenceName
from stillhouse.kd.loss import Part, check_logits
from stillhouse.kd.options import Options
from stillhouse.kd.rows import NO_LABEL
from stillhouse.kd.step import with_head
from stillhouse.kd.teacher import TopKTail, check_whole, num_rows, shared_width
from stillhouse.payloads import OutputHead, Payload
from stillhouse.providers import TeacherLogitsProvider
from stillhouse.request import Explicit, LogitsRequest, Sequence

KlPositions = Literal["labelled", "attended"]
"""Where KL counts: at the predictions that have a label, or at every real position."""


def causal_lm_kd_loss(
    student_logits: Tensor,
    teacher: SequenceOf[Payload] | TeacherLogitsProvider,
    labels: Tensor,
    *,
    attention_mask: Tensor | None,
    temperature: float,
    alpha: float,
    input_ids: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    kl_positions: KlPositions = "labelled",
    num_valid_in_batch: Tensor | int | None = None,
    encoding: Encoding | None = None,
    vocabulary_size: int | None = None,
    output_head: OutputHead | None = None,
    top_k_tail: TopKTail = "bucket",
    loss: DivergenceName = "forward_kl",
    jsd_beta: float = 0.5,
) -> Tensor:
    """Return the distillation loss of a batch as a transformers collator makes it; call `backward()` on it.

    At `alpha = 1` it is transformers' own causal-LM loss: cross-entropy over every shifted label that is not -100,
    divided by `num_items_in_batch`, or by their number. KL counts, by default, at the same predictions, with the same
    denominator. A padding column teaches no KL, on whichever side it is. (Under left padding the first real token is
    predicted from a padding column. transformers counts that cross-entropy, and so does this loss; where it should
    not count, set the first real token's label to -100.)

    Args:
        student_logits: `[B, L, V]`, as the model gave them.
        teacher: one payload for each row of the batch, over all positions (`All()`) of the row's real tokens: the ids
            where `attention_mask` is 1, in order, without padding. Or a provider, which is asked once, for the
            positions that count.
        labels: `[B, L]` unshifted, as for the model: `labels[b, j]` stands for token j; -100 is not learnt.
        attention_mask: `[B, L]`, 1 at real tokens, in one run for each row; None: there is no padding.
        temperature: T > 0.
        alpha: from 0 to 1, the weight of cross-entropy; `1 - alpha` weighs KL.
        input_ids: `[B, L]`, needed where `teacher` is a provider.
        num_items_in_batch: labelled predictions of the whole batch, over all ranks and accumulated parts, as the
            Trainer counts them; by default those of this call.
        kl_positions: "labelled", or "attended": every real position, those without a label (a prompt, the last)
            included.
        num_valid_in_batch: for "attended", the real positions of the whole batch; needed with `num_items_in_batch`.
        encoding: what a provider is asked for; by default every logit.
        vocabulary_size: N, needed where the two sides differ.
        output_head: what hidden states are turned into logits with; a provider is asked for it by default.
        top_k_tail: see `kd_loss_and_gradient`.
        loss: the divergence, wherever KL stands here: see there.
        jsd_beta: see there.

    Raises:
        VocabularyMismatchError: the two sides have different sizes.
        ValueError: arguments that do not fit, or logits that have no loss.
        TeacherError: the provider has no answer.
    """
    options = Options(temperature, alpha, vocabulary_size, output_head, top_k_tail, loss, jsd_beta)
    if kl_positions not in ("labelled", "attended"):
        raise ValueError(f"kl_positions must be labelled or attended; got {kl_positions!r}")
    attended = _attended(student_logits, labels, attention_mask)
    targets = torch.nn.functional.pad(checks.integers("labels", labels), (0, 1), value=NO_LABEL)[:, 1:]
    taught = attended & (targets != NO_LABEL) if kl_positions == "labelled" else attended
    items, valid = _whole("num_items_in_batch", num_items_in_batch), _whole("num_valid_in_batch", num_valid_in_batch)
    num_labelled = checks.check_denominator("num_items_in_batch", items, int((targets != NO_LABEL).sum()))
    num_valid = _num_valid(kl_positions, items, valid, int(taught.sum()))

    if isinstance(teacher, TeacherLogitsProvider):
        _check_targets(targets, vocabulary_size or teacher.describe().vocabulary_size)
        options = with_head(options, teacher, encoding)
        answers = _ask(teacher, input_ids, attended, taught, encoding or Dense(), options)
    else:
        answers = _given(teacher, attended, taught)
    flat = student_logits.reshape(-1, student_logits.shape[-1])
    parts = _parts(flat, answers, targets, taught, options)
    return differentiable(flat, parts, options, num_valid, num_labelled)


Answer = tuple[Payload, Tensor] | None
"""A payload and which of its rows teach, for one row of a batch; None where nothing is taught."""


def _given(payloads: SequenceOf[Payload], attended: Tensor, taught: Tensor) -> list[Answer]:
    if len(payloads) != len(attended):
        raise ValueError(
            f"teacher must hold one payload for each of the batch's {len(attended)} rows; got {len(payloads)}"
        )
    answers: list[Answer] = []
    for index, payload in enumerate(payloads):
        real = int(attended[index].sum())
        if num_rows(payload) != real:
            raise ValueError(
                f"teacher[{index}] must have one row for each of the {real} real tokens of row {index} (padding left "
                f"out); got {num_rows(payload)}"
            )
        answers.append((payload, taught[index][attended[index]].nonzero()[:, 0]))
    return answers


def _ask(
    teacher: TeacherLogitsProvider,
    input_ids: Tensor | None,
    attended: Tensor,
    taught: Tensor,
    encoding: Encoding,
    options: Options,
) -> list[Answer]:
    """Ask for the positions that teach, and nothing else."""
    if input_ids is None or input_ids.shape != attended.shape:
        raise ValueError(
            f"input_ids must have the labels' shape {tuple(attended.shape)} when the teacher is a provider"
        )
    ids = input_ids.detach().cpu()
    wanted = [index for index in range(len(ids)) if bool(taught[index].any())]
    sequences = tuple(
        Sequence(
            tuple(ids[index][attended[index]].tolist()),
            positions=Explicit(tuple(taught[index][attended[index]].nonzero()[:, 0].tolist())),
        )
        for index in wanted
    )
    answers: list[Answer] = [None] * len(ids)
    if not sequences:
        return answers
    request = LogitsRequest(
        sequences, encoding, temperature=options.temperature, vocabulary_size=options.vocabulary_size or 0
    )
    payloads = teacher.answer(request).payloads
    if len(payloads) != len(sequences):
        raise ValueError(f"the teacher must answer {len(sequences)} sequences; got {len(payloads)} payloads")
    for index, sequence, payload in zip(wanted, sequences, payloads, strict=True):
        if num_rows(payload) != sequence.num_positions:
            raise ValueError(
                f"the teacher must answer {sequence.num_positions} positions of row {index}; got {num_rows(payload)}"
            )
        answers[index] = (payload, torch.arange(sequence.num_positions))
    return answers


def _parts(flat: Tensor, answers: list[Answer], targets: Tensor, taught: Tensor, options: Options) -> list[Part]:
    """Return one part for each row of the batch, and one for the labels at which nothing is taught."""
    check_logits("student_logits", flat)
    for answer in answers:
        check_whole(None if answer is None else answer[0], options.loss)
    labels, length = targets.reshape(-1), targets.shape[1]
    widths = [
        shared_width(flat.shape[1], answer[0], options.output_head, options.vocabulary_size)
        for answer in answers
        if answer is not None
    ]
    width = widths[0] if widths else options.vocabulary_size or flat.shape[1]
    _check_targets(targets, width)
    parts = [
        Part(flat, answer[0], labels, taught[index].nonzero()[:, 0] + index * length, answer[1], width)
        for index, answer in enumerate(answers)
        if answer is not None
    ]
    untaught = ((targets != NO_LABEL) & ~taught).reshape(-1).nonzero()[:, 0]
    return [*parts, Part(flat, None, labels, untaught, untaught, width)]


def _check_targets(targets: Tensor, width: int) -> None:
    """Refuse a label that is no id below `width`, by its place among the unshifted labels."""
    checks.check_label_range(torch.nn.functional.pad(targets[:, :-1], (1, 0), value=NO_LABEL), width)


def _attended(student_logits: Tensor, labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return where the real tokens are, `[B, L]` bool on CPU."""
    if not isinstance(student_logits, Tensor) or student_logits.dim() != 3:
        raise ValueError(f"student_logits must be [batch, length, vocabulary]; got {_shape(student_logits)}")
    shape = student_logits.shape[:2]
    for name, tensor in (("labels", labels), ("attention_mask", attention_mask)):
        if tensor is not None and _shape(tensor) != shape:
            raise ValueError(f"{name} must have the logits' shape {tuple(shape)}; got {_shape(tensor)}")
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.bool)
    attended = attention_mask.detach().cpu() != 0
    edges = torch.nn.functional.pad(attended.int(), (1, 1)).diff(dim=1).abs().sum(dim=1)
    if bool((edges > 2).any()):
        row = int((edges > 2).nonzero()[0])
        raise ValueError(
            f"attention_mask must have its real tokens in one run for each row; those of row {row} are in "
            f"{int(edges[row]) // 2}: leave out padding on either side alone"
        )
    return attended


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _whole(name: str, count: Tensor | int | None) -> int | None:
    if not isinstance(count, Tensor):
        return count
    if count.numel() != 1:
        raise InvalidRequestError(f"{name} must be one number; got a tensor of shape {tuple(count.shape)}")
    return int(count.item())


def _num_valid(kl_positions: KlPositions, items: int | None, given: int | None, own: int) -> int:
    if kl_positions == "attended":
        if items is not None and given is None:
            raise InvalidRequestError(
                "num_valid_in_batch must be given with num_items_in_batch where kl_positions is attended: the number "
                "of labels is not the number of real positions that KL is averaged over"
            )
        return checks.check_denominator("num_valid_in_batch", given, own)
    if given is not None:
        raise InvalidRequestError(
            "num_valid_in_batch is for kl_positions='attended'; over labelled positions KL has num_items_in_batch too"
        )
    return checks.check_denominator("num_items_in_batch", items, own)
