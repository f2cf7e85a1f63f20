"""The figures of a held-out evaluation, and the sums that they are the means of.

Sums over the vocabulary, within a row, are float32; those over rows are float64, in the order of the samples, so that
every worker comes to the same bits.
Knows nothing of samples, requests or models. Shapes: R rows, N the vocabulary that both sides share.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.payloads import DenseLogits, Payload, TopKLogits
from student_worker.batches import NO_LABEL

CALIBRATION_BINS = 15
"""As in Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 4.2."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over the held-out rows, in nats; perplexities are exp of cross-entropies.

    `loss` is the run's objective at T = 1: alpha * cross_entropy + (1 - alpha) * its divergence. `kl` is
    KL(teacher || student) at T = 1 whatever the objective (with TOP_K, of head and tail bucket: a lower bound),
    `agreement` how often both have the same first choice, `calibration_error` how far the probability of the student's
    first choice is from how often it is right. The teacher's own figures and the agreement are None where its encoding
    does not tell them, and those of the labels where no row has one.
    """

    loss: float
    kl: float
    agreement: float | None
    cross_entropy: float | None
    perplexity: float | None
    calibration_error: float | None
    cross_entropy_teacher: float | None
    perplexity_teacher: float | None
    calibration_error_teacher: float | None
    num_rows: int

    def as_json(self) -> dict[str, float | int | None]:
        """Return the figures by name."""
        return asdict(self)


class Calibration:
    """The expected calibration error of first choices (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Rows are put by the probability of their first choice into bins of equal width, (i / 15, (i + 1) / 15]; the error is
    the mean over rows of their bin's |share of right choices - mean probability|.
    """

    def __init__(self) -> None:
        self._rows, self._right, self._confidence = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64)
        self._edges = torch.arange(1, CALIBRATION_BINS, dtype=torch.float64) / CALIBRATION_BINS

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count the rows `[R, N]` that have a label `[R]`."""
        labels = labels.to(logits.device)
        logits, labels = logits[labels != NO_LABEL], labels[labels != NO_LABEL]
        largest, choice = logits.float().max(-1)
        confidence = (largest - logits.float().logsumexp(-1)).exp().double().clamp(max=1.0).cpu()
        right = (choice == labels).double().cpu()
        place = torch.bucketize(confidence, self._edges)
        self._rows += torch.bincount(place, minlength=CALIBRATION_BINS)
        self._right += torch.bincount(place, right, CALIBRATION_BINS)
        self._confidence += torch.bincount(place, confidence, CALIBRATION_BINS)

    def error(self) -> float | None:
        """Return the error, from 0 to 1; None where no row had a label."""
        rows = float(self._rows.sum())
        return float((self._right - self._confidence).abs().sum()) / rows if rows else None


@dataclass(slots=True)
class Sums:
    """What has been seen so far, over all chunks of rows."""

    divergence: float = 0.0
    kl: float = 0.0
    agreed: int = 0
    cross_entropy: float = 0.0
    cross_entropy_teacher: float = 0.0
    rows: int = 0
    labelled: int = 0
    teacher_known: bool = True
    choice_known: bool = True
    calibration: Calibration = field(default_factory=Calibration)
    calibration_teacher: Calibration = field(default_factory=Calibration)

    def add(self, logits: Tensor, teacher: Payload, labels: Tensor) -> None:
        """Add what can be read off the student's logits `[R, N]`, the teacher's payload and the labels `[R]`."""
        self.rows += len(labels)
        self.labelled += int((labels != NO_LABEL).sum())
        choices = _first_choices(teacher)
        if choices is None:
            self.choice_known = False
        else:
            self.agreed += int((logits.argmax(-1).cpu() == choices).sum())
        self.calibration.add(logits, labels)
        if isinstance(teacher, DenseLogits):
            self.cross_entropy_teacher += _cross_entropy(teacher.logits, labels)
            self.calibration_teacher.add(teacher.logits, labels)
        else:
            self.teacher_known = False

    def means(self, alpha: float) -> Evaluation | None:
        """Return the figures, None of no rows."""
        if self.rows == 0:
            return None
        student = self.cross_entropy / self.labelled if self.labelled else None
        teacher = self.cross_entropy_teacher / self.labelled if self.labelled and self.teacher_known else None
        return Evaluation(
            loss=alpha * (student or 0.0) + (1 - alpha) * self.divergence / self.rows,
            kl=self.kl / self.rows,
            agreement=self.agreed / self.rows if self.choice_known else None,
            cross_entropy=student,
            perplexity=_exp(student),
            calibration_error=self.calibration.error(),
            cross_entropy_teacher=teacher,
            perplexity_teacher=_exp(teacher),
            calibration_error_teacher=self.calibration_teacher.error() if self.teacher_known else None,
            num_rows=self.rows,
        )


def _first_choices(payload: Payload) -> Tensor | None:
    """Return the teacher's first choices `[R]`; None of draws or of candidates, which do not tell them."""
    match payload:
        case DenseLogits(logits):
            return logits.argmax(-1).cpu()
        case TopKLogits(token_ids=token_ids):
            return token_ids[:, 0].long().cpu()
        case _:
            return None


def _cross_entropy(logits: Tensor, labels: Tensor) -> float:
    each = functional.cross_entropy(logits.cpu().float(), labels.cpu(), ignore_index=NO_LABEL, reduction="none")
    return float(each.double().sum())


def _exp(value: float | None) -> float | None:
    """Return exp, kept within what JSON can hold: an untrained student's can be beyond a float."""
    return None if value is None else math.exp(min(value, 700.0))
