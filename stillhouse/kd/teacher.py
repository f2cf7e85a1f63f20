"""What a teacher answered, as rows that the kernel reads: one source per kind of payload.

A source is made for the rows that count, in rising order, and hands them out a chunk at a time: a dense answer as
views, hidden states by rebuilding a block of logits, so that `[R, N]` never exists at once.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from stillhouse.encodings import Candidates, Sampled, TopK
from stillhouse.errors import InvalidRequestError, VocabularyMismatchError
from stillhouse.kd.checks import check_draws, same_temperature
from stillhouse.kd.divergences import DivergenceName
from stillhouse.kd.rows import DenseRows, SampledRows, TeacherRows, TopKRows
from stillhouse.payloads import (
    CandidateLogits,
    DenseLogits,
    HiddenStates,
    OutputHead,
    Payload,
    SampledCounts,
    TopKLogits,
)

TopKTail = Literal["bucket", "renormalise"]
"""What becomes of the ids that a top-k or candidates answer left out: one bucket of known mass, or dropped."""

HIDDEN_BLOCK_ROWS = 256
"""Rows rebuilt from hidden states at once: enough for the matmul to be one, 50 MiB of logits for 49,152 ids."""


class TeacherSource(Protocol):
    """Hands out the teacher's rows, by their place among the rows that count."""

    def chunk(self, start: int, stop: int) -> TeacherRows:
        """Return the rows from `start` up to `stop`."""


def take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return the rows named by rising CPU indices: a view where they follow each other, a copy where not."""
    first, count = int(rows[0]), len(rows)
    if int(rows[-1]) - first == count - 1:
        return tensor[first : first + count]
    return tensor.index_select(0, rows.to(tensor.device))


def check_whole(answer: object, loss: DivergenceName) -> None:
    """Refuse a payload, or an encoding before anybody is asked, that tells too little for a divergence.

    Raises:
        InvalidRequestError: reverse KL and jsd need the teacher's probability of whatever the student prefers.
    """
    if loss != "forward_kl" and isinstance(answer, _PARTS_OF_A_DISTRIBUTION):
        raise InvalidRequestError(
            f"loss is {loss!r}, which needs the teacher's whole distribution, and {type(answer).__name__} tells only "
            "part of it; ask the teacher with encoding Dense() or Hidden(), or use loss='forward_kl'"
        )


_PARTS_OF_A_DISTRIBUTION = (TopKLogits, SampledCounts, CandidateLogits, TopK, Sampled, Candidates)


def num_rows(teacher: Payload | Tensor) -> int:
    """Return how many positions a teacher's answer has."""
    return teacher.shape[0] if isinstance(teacher, Tensor) else teacher.num_positions


def vocabulary_size(teacher: Payload | Tensor, output_head: OutputHead | None) -> int:
    """Return the teacher's N.

    Raises:
        InvalidRequestError: hidden states without an output head of their width.
    """
    match teacher:
        case Tensor():
            return teacher.shape[-1]
        case HiddenStates(hidden):
            if output_head is None:
                raise InvalidRequestError("output_head must be given to learn from hidden states; got None")
            if output_head.weight.shape[1] != hidden.shape[1]:
                raise InvalidRequestError(
                    f"output_head.weight must have the hidden states' width {hidden.shape[1]}; "
                    f"got {output_head.weight.shape[1]}"
                )
            return output_head.weight.shape[0]
        case _:
            return teacher.vocabulary_size


def shared_width(student: int, teacher: Payload | Tensor, output_head: OutputHead | None, asked: int | None) -> int:
    """Return N, the width that both sides are cut to.

    Raises:
        VocabularyMismatchError: the sizes differ and no N was named, or N is over one of them, or the answer was
            normalised over another N: only dense logits and hidden states can be cut afterwards.
    """
    served = vocabulary_size(teacher, output_head)
    sizes = f"the teacher's vocabulary has {served} entries, the student's {student}"
    if asked is None:
        if served != student:
            raise VocabularyMismatchError(
                f"{sizes}; if their tokenizers give the same tokens to the first ids, name how many: vocabulary_size=N"
            )
        return student
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InvalidRequestError(f"vocabulary_size must be an integer of at least 1; got {asked!r}")
    if asked > min(served, student):
        raise VocabularyMismatchError(f"vocabulary_size is {asked}, but {sizes}; name at most the smaller")
    if isinstance(teacher, TopKLogits | CandidateLogits | SampledCounts) and asked != served:
        raise VocabularyMismatchError(
            f"vocabulary_size is {asked}, but the {type(teacher).__name__} were normalised over {served} ids; "
            f"ask the teacher with vocabulary_size={asked}"
        )
    return asked


def teacher_source(
    teacher: Payload | Tensor,
    rows: Tensor,
    *,
    width: int,
    temperature: float,
    output_head: OutputHead | None,
    top_k_tail: TopKTail,
    dtype: torch.dtype,
    device: torch.device,
) -> TeacherSource:
    """Return the source of a teacher's `rows` (rising CPU indices) for the kernel.

    Raises:
        InvalidRequestError: a payload that no loss is defined for, or one of another temperature.
    """
    match teacher:
        case Tensor():
            return _DenseSource(teacher, rows, width, device)
        case DenseLogits(logits):
            return _DenseSource(logits, rows, width, device)
        case HiddenStates(hidden) if output_head is not None:
            return _HiddenSource(hidden, output_head, rows, width, dtype, device)
        case TopKLogits() | CandidateLogits():
            same_temperature(teacher.temperature, temperature)
            return _HeadSource(teacher, rows, top_k_tail, dtype, device)
        case SampledCounts():
            same_temperature(teacher.temperature, temperature)
            return _SampledSource(teacher, rows, dtype, device)
        case _:
            raise InvalidRequestError(f"teacher must be a payload or a tensor of logits; got {type(teacher).__name__}")


class _DenseSource:
    def __init__(self, logits: Tensor, rows: Tensor, width: int, device: torch.device) -> None:
        self._logits, self._rows, self._device = logits[:, :width], rows, device

    def chunk(self, start: int, stop: int) -> DenseRows:
        return DenseRows(take_rows(self._logits, self._rows[start:stop]).to(self._device))


class _HiddenSource:
    def __init__(
        self, hidden: Tensor, head: OutputHead, rows: Tensor, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._hidden, self._rows, self._width = hidden, rows, width
        self._head = head.to(dtype=dtype, device=device)
        self._block = self._head.weight.new_empty(0, width)
        self._start = 0

    def chunk(self, start: int, stop: int) -> DenseRows:
        if not self._start <= start <= stop <= self._start + len(self._block):
            self._start = start
            block = take_rows(self._hidden, self._rows[start : max(stop, start + HIDDEN_BLOCK_ROWS)])
            self._block = self._head.logits(block, self._width)
        return DenseRows(self._block[start - self._start : stop - self._start])


class _HeadSource:
    """Some ids by name and one bucket for all others: a top-k answer, or candidates."""

    def __init__(
        self,
        payload: TopKLogits | CandidateLogits,
        rows: Tensor,
        tail: TopKTail,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        ids = payload.token_ids.expand(payload.num_positions, -1)  # candidates may be the same ids for every row
        _check_ids(ids, payload.vocabulary_size)
        self._ids = take_rows(ids, rows).to(device=device, dtype=torch.int64)
        scaled = take_rows(payload.logits, rows).to(device=device, dtype=dtype) / payload.temperature
        self._log_tail = take_rows(payload.tempered_log_tail_mass, rows).to(device=device, dtype=dtype)[:, None]
        if tail == "renormalise":
            self._log_tail = torch.full_like(self._log_tail, -torch.inf)
        # The head is rounded to the payload's dtype, its tail's mass is not: the head takes what the tail leaves.
        self._log_tail = self._log_tail.clamp_max(0.0)
        head_mass = torch.log(-torch.expm1(self._log_tail))
        # Ids that the teacher all rules out have no softmax; their mass is 0 like that of any head beside a tail of 1.
        self._log_probs = (torch.log_softmax(scaled, -1) + head_mass).masked_fill(head_mass == -torch.inf, -torch.inf)

    def chunk(self, start: int, stop: int) -> TopKRows:
        return TopKRows(self._ids[start:stop], self._log_probs[start:stop], self._log_tail[start:stop])


class _SampledSource:
    def __init__(self, payload: SampledCounts, rows: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        _check_ids(payload.token_ids, payload.vocabulary_size)
        check_draws(payload.offsets, payload.counts, payload.draws)
        self._payload, self._rows, self._dtype, self._device = payload, rows, dtype, device
        self._entropy = take_rows(payload.entropy, rows).to(device=device, dtype=dtype)[:, None]

    def chunk(self, start: int, stop: int) -> SampledRows:
        payload, rows = self._payload, self._rows[start:stop]
        offsets = payload.offsets.cpu()
        first, length = offsets[rows], offsets[rows + 1] - offsets[rows]
        place = torch.arange(int(length.max()))
        is_drawn = place < length[:, None]
        # Padding repeats the row's first entry, with a weight of 0.
        entries = (first[:, None] + torch.where(is_drawn, place, 0)).to(payload.token_ids.device)
        weights = payload.counts[entries].to(self._device, self._dtype) / payload.draws
        return SampledRows(
            payload.token_ids[entries].to(self._device, torch.int64),
            weights.masked_fill_(~is_drawn.to(self._device), 0.0),
            self._entropy[start:stop],
        )


def _check_ids(ids: Tensor, vocabulary_size: int) -> None:
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary_size):
        raise InvalidRequestError(f"token_ids of a sparse answer must be from 0 to {vocabulary_size - 1}")
