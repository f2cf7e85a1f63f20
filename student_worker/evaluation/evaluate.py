"""How near the student is to its teacher on text that neither is trained on here.

Every worker evaluates the whole held-out part by itself: the figures are the same everywhere, nobody waits for
anybody, and any survivor has them. The teacher is asked at T = 1 past its cache, so that held-out answers push no
training answers out; they stay in this worker's memory where they fit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from stillhouse.asking import Asking
from stillhouse.data import Sample
from stillhouse.data.dataset import PartName
from stillhouse.encoding_text import format_encoding
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import ConfigurationError
from stillhouse.kd import LossAndGradient, kd_loss_and_gradient
from stillhouse.kd.divergences import FORWARD_KL, Divergence
from stillhouse.payloads import DenseLogits, HiddenStates, OutputHead, Payload, concatenate
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from student_worker.batches import Batch, make_batch
from student_worker.corpus import Samples
from student_worker.evaluation.figures import Evaluation, Sums
from student_worker.failpoints import fail_point
from student_worker.payload_rows import slice_rows
from student_worker.prefetch import Interrupted
from student_worker.shard_step import CHUNK_ROWS
from student_worker.students.base import Student

SAMPLES_PER_REQUEST = 8


class Evaluator:
    """Evaluates one held-out part again and again.

    Args:
        held_out: the samples.
        answer: asks the teacher, waiting while it is away.
        asking: how to ask: at T = 1, for dense logits, hidden states or a top-k. What a store holds may be others, and
            draws at another T, at which the divergences are then.
        max_bytes: answers are remembered when all of them fit in so many bytes.
        head: what hidden states are rebuilt with, on the student's device.
        alpha: weighs cross-entropy in `loss`; `1 - alpha` weighs the divergence.
        divergence: the objective's; the KL is told beside it.
        stopping: set when the run is to end; an evaluation under way is given up then.
        part: which part of the corpus it is, by which a store finds an answer.

    Raises:
        ConfigurationError: the divergence needs the teacher's whole distribution, and the encoding does not tell it.
    """

    def __init__(
        self,
        held_out: Samples,
        answer: Callable[[LogitsRequest], Answer],
        asking: Asking,
        max_bytes: int,
        head: OutputHead | None = None,
        alpha: float = 0.0,
        divergence: Divergence = FORWARD_KL,
        stopping: threading.Event | None = None,
        part: PartName = "held_out",
    ) -> None:
        if divergence.name != "forward_kl" and not isinstance(asking.encoding, Dense | Hidden):
            raise ConfigurationError(
                f"eval_encoding {format_encoding(asking.encoding)!r} does not tell the teacher's whole distribution, "
                f"which loss {divergence.name} needs; write auto, dense or hidden"
            )
        self._stopping = stopping
        self._alpha = alpha
        self._divergence = divergence
        everything = ((held_out[index], (part, index)) for index in range(len(held_out)))
        self._samples = [(sample, place) for sample, place in everything if sample.mask.any()]
        self._answer = answer
        self._asking = asking
        self._head = head
        self._vocabulary_size = asking.vocabulary_size
        rows = sum(int(sample.mask.sum()) for sample, _ in self._samples)
        hidden_size = 0 if head is None else head.hidden_size
        self._remembers = rows * row_bytes(asking.encoding, asking.vocabulary_size, hidden_size) <= max_bytes
        self._remembered: dict[int, Payload] = {}

    def evaluate(self, student: Student, step: int = 0) -> Evaluation | None:
        """Return the figures after `step` steps, None where the held-out part has no row.

        Raises:
            TeacherError: the teacher has no answer.
            ValueError: the student's logits are not finite.
            Interrupted: the run is to stop.
        """
        sums = Sums()
        student.module.eval()
        for batch, teacher in self._batches():
            with torch.no_grad():
                self._add(sums, student, batch.to(student.device), teacher)
            fail_point("mid-evaluation", step)
            if self._stopping is not None and self._stopping.is_set():
                raise Interrupted
        return sums.means(self._alpha)

    def _batches(self) -> Iterator[tuple[Batch, Payload]]:
        for start in range(0, len(self._samples), SAMPLES_PER_REQUEST):
            samples = self._samples[start : start + SAMPLES_PER_REQUEST]
            yield make_batch([sample for sample, _ in samples]), self._payload(start, samples)

    def _payload(self, start: int, samples: Sequence[tuple[Sample, tuple[str, int]]]) -> Payload:
        known = self._remembered.get(start)
        if known is None:
            request = self._asking.request([sample for sample, _ in samples], [place for _, place in samples])
            known = concatenate(self._answer(request).payloads)
            if self._remembers:
                self._remembered[start] = known
        return known

    def _rebuilt(self, payload: Payload) -> Payload:
        """Return dense logits in place of hidden states: they tell the teacher's own figures too."""
        if isinstance(payload, HiddenStates) and self._head is not None:
            return DenseLogits(self._head.logits(payload.hidden, self._vocabulary_size))
        return payload

    def _add(self, sums: Sums, student: Student, batch: Batch, teacher: Payload) -> None:
        states = student.row_states(batch)
        for start in range(0, batch.num_rows, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, batch.num_rows)
            logits = student.head(states[start:stop]).float()[:, : self._vocabulary_size]
            part, labels = self._rebuilt(slice_rows(teacher, start, stop)), batch.labels[start:stop]
            terms = self._terms(logits, part, labels, FORWARD_KL)
            sums.kl += terms.kl
            sums.cross_entropy += terms.cross_entropy
            forward = self._divergence.name == "forward_kl"
            sums.divergence += (terms if forward else self._terms(logits, part, labels, self._divergence)).kl
            sums.add(logits, part, labels)

    def _terms(self, logits: Tensor, teacher: Payload, labels: Tensor, divergence: Divergence) -> LossAndGradient:
        """Return the two terms: with denominators of 1 they are the sums over these rows."""
        return kd_loss_and_gradient(
            logits,
            teacher,
            labels,
            temperature=self._asking.temperature,
            alpha=0.0,
            num_valid=1,
            num_labelled=1,
            vocabulary_size=self._vocabulary_size,
            loss=divergence.name,
            jsd_beta=divergence.beta,
        )


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
