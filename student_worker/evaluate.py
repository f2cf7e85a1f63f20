"""How near the student is to its teacher on text that neither is trained on here.

Every worker evaluates the whole held-out part by itself: the figures are the same everywhere, nobody waits for
anybody, and any survivor has them. The teacher is asked at T = 1 past its cache, so that held-out answers push no
training answers out; they stay in this worker's memory where they fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from stillhouse.data import PackedDataset, Sample
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.kd import kd_loss_and_gradient
from stillhouse.payloads import DenseLogits, HiddenStates, OutputHead, Payload, TopKLogits, concatenate
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from student_worker.batches import NO_LABEL, Asking, Batch, make_batch
from student_worker.failpoints import fail_point
from student_worker.payload_rows import slice_rows
from student_worker.shard_step import CHUNK_ROWS
from student_worker.students.base import Student

SAMPLES_PER_REQUEST = 8


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over the held-out rows, in nats; perplexities are exp of cross-entropies.

    `loss` is the run's objective at T = 1, `kl` is the divergence there (with TOP_K, of head and tail bucket:
    a lower bound), `agreement` how often both have the same first choice. The teacher's own figures are None where its
    encoding does not tell them, and those of the labels where no row has one.
    """

    loss: float
    kl: float
    agreement: float
    cross_entropy: float | None
    perplexity: float | None
    cross_entropy_teacher: float | None
    perplexity_teacher: float | None
    num_rows: int

    def as_json(self) -> dict[str, float | int | None]:
        """Return the figures by name."""
        return asdict(self)


@dataclass(slots=True)
class _Sums:
    kl: float = 0.0
    agreed: int = 0
    cross_entropy: float = 0.0
    cross_entropy_teacher: float = 0.0
    rows: int = 0
    labelled: int = 0
    teacher_known: bool = True


class Evaluator:
    """Evaluates one held-out part again and again.

    Args:
        held_out: the samples.
        answer: asks the teacher, waiting while it is away.
        asking: how to ask: at T = 1, for dense logits, hidden states or a top-k.
        max_bytes: answers are remembered when all of them fit in so many bytes.
        head: what hidden states are rebuilt with, on the student's device.
        alpha: weighs cross-entropy in `loss`; `1 - alpha` weighs KL.
    """

    def __init__(
        self,
        held_out: PackedDataset,
        answer: Callable[[LogitsRequest], Answer],
        asking: Asking,
        max_bytes: int,
        head: OutputHead | None = None,
        alpha: float = 0.0,
    ) -> None:
        self._alpha = alpha
        self._samples = [sample for sample in (held_out[i] for i in range(len(held_out))) if sample.mask.any()]
        self._answer = answer
        self._asking = asking
        self._head = head
        self._vocabulary_size = asking.vocabulary_size
        rows = sum(int(sample.mask.sum()) for sample in self._samples)
        hidden_size = 0 if head is None else head.hidden_size
        self._remembers = rows * row_bytes(asking.encoding, asking.vocabulary_size, hidden_size) <= max_bytes
        self._remembered: dict[int, Payload] = {}

    def evaluate(self, student: Student, step: int = 0) -> Evaluation | None:
        """Return the figures after `step` steps, None where the held-out part has no row.

        Raises:
            TeacherError: the teacher has no answer.
        """
        sums = _Sums()
        student.module.eval()
        for batch, teacher in self._batches():
            with torch.no_grad():
                self._add(sums, student, batch.to(student.device), teacher)
            fail_point("mid-evaluation", step)
        return _means(sums, self._alpha)

    def _batches(self) -> Iterator[tuple[Batch, Payload]]:
        for start in range(0, len(self._samples), SAMPLES_PER_REQUEST):
            samples = self._samples[start : start + SAMPLES_PER_REQUEST]
            yield make_batch(samples), self._payload(start, samples)

    def _payload(self, start: int, samples: list[Sample]) -> Payload:
        known = self._remembered.get(start)
        if known is None:
            known = concatenate(self._answer(self._asking.request(samples)).payloads)
            if self._remembers:
                self._remembered[start] = known
        return known

    def _rebuilt(self, payload: Payload) -> Payload:
        """Return dense logits in place of hidden states: they tell the teacher's own figures too."""
        if isinstance(payload, HiddenStates) and self._head is not None:
            return DenseLogits(self._head.logits(payload.hidden, self._vocabulary_size))
        return payload

    def _add(self, sums: _Sums, student: Student, batch: Batch, teacher: Payload) -> None:
        states = student.row_states(batch)
        for start in range(0, batch.num_rows, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, batch.num_rows)
            logits = student.head(states[start:stop]).float()
            part, labels = self._rebuilt(slice_rows(teacher, start, stop)), batch.labels[start:stop]
            # With denominators of 1 the two terms are the sums over these rows.
            terms = kd_loss_and_gradient(
                logits,
                part,
                labels,
                temperature=1.0,
                alpha=0.0,
                num_valid=1,
                num_labelled=1,
                vocabulary_size=self._vocabulary_size,
            )
            labelled = labels != NO_LABEL
            sums.kl += terms.kl
            sums.cross_entropy += terms.cross_entropy
            sums.rows += stop - start
            sums.labelled += int(labelled.sum())
            first_choice = logits[:, : self._vocabulary_size].argmax(-1).cpu()
            sums.agreed += int((first_choice == _first_choices(part)).sum())
            if isinstance(part, DenseLogits):
                sums.cross_entropy_teacher += _cross_entropy(part.logits, labels.cpu())
            else:
                sums.teacher_known = False


def row_bytes(encoding: Encoding, vocabulary_size: int, hidden_size: int) -> int:
    """Return about how many bytes one row of an answer takes in memory, at most."""
    value = {"float32": 4, "float16": 2, "bfloat16": 2}[getattr(encoding, "value_type", "float32")]
    match encoding:
        case Dense():
            return vocabulary_size * value
        case Hidden():
            return hidden_size * value
        case TopK(k=k):
            return k * (4 + value) + 16
        case Candidates(token_ids=ids):
            return len(ids) * value + 16
        case Sampled(draws=draws):
            return min(draws, vocabulary_size) * 8 + 12


def _first_choices(payload: Payload) -> Tensor:
    match payload:
        case DenseLogits(logits):
            return logits.argmax(-1).cpu()
        case TopKLogits(token_ids=token_ids):
            return token_ids[:, 0].long().cpu()
        case _:
            raise TypeError(f"{type(payload).__name__} does not tell the first choice; evaluate with dense or top_k")


def _cross_entropy(logits: Tensor, labels: Tensor) -> float:
    return float(
        torch.nn.functional.cross_entropy(logits.cpu().float(), labels, ignore_index=NO_LABEL, reduction="sum")
    )


def _means(sums: _Sums, alpha: float) -> Evaluation | None:
    if sums.rows == 0:
        return None
    student = sums.cross_entropy / sums.labelled if sums.labelled else None
    teacher = sums.cross_entropy_teacher / sums.labelled if sums.labelled and sums.teacher_known else None
    return Evaluation(
        loss=alpha * (student or 0.0) + (1 - alpha) * sums.kl / sums.rows,
        kl=sums.kl / sums.rows,
        agreement=sums.agreed / sums.rows,
        cross_entropy=student,
        perplexity=_exp(student),
        cross_entropy_teacher=teacher,
        perplexity_teacher=_exp(teacher),
        num_rows=sums.rows,
    )


def _exp(value: float | None) -> float | None:
    """Return exp, kept within what JSON can hold: an untrained student's can be beyond a float."""
    return None if value is None else math.exp(min(value, 700.0))
