"""Who answers: the two protocols that a training loop is written against.

A `TeacherLogitsProvider` answers requests: a live service (`client`), a fixture, or a store. A
`StudentLogitsProvider` computes logits and applies gradients to whatever it wraps. `kd.kd_step` connects the two
and knows nothing else of either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stillhouse.encodings import Encoding, ValueType
from stillhouse.errors import EncodingNotOfferedError
from stillhouse.payloads import OutputHead, Payload
from stillhouse.plain_requests import CandidateRows, PositionChoice, TokenBatch, TokenRows, plain_request
from stillhouse.request import All, Last, LogitsRequest, TeacherDescription
from stillhouse.scoring import plan_scoring


@dataclass(frozen=True, slots=True)
class Answer:
    """One payload per sequence of a request, in its order, and who gave it.

    Times in seconds; `num_bytes` is what the payloads took on their way, 0 where they had none. `cache_hits` of them
    the teacher remembered, and `store_hits` were read from a store, with no teacher asked.
    """

    payloads: tuple[Payload, ...]
    fingerprint: str
    cache_hits: int = 0
    store_hits: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    encode_seconds: float = 0.0
    num_bytes: int = 0


class TeacherLogitsProvider(ABC):
    """Answers requests for a teacher's logits."""

    @abstractmethod
    def describe(self) -> TeacherDescription:
        """Return what is served. May be called often: an implementation that must ask remembers the answer."""

    @abstractmethod
    def answer(self, request: LogitsRequest) -> Answer:
        """Answer one request.

        Raises:
            TeacherError: one of its kinds, when there is no answer.
        """

    def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        """Return what rebuilds the logits from a `Hidden` answer. May be called often, as `describe`.

        `value_type` is "float32" or "bfloat16"; None is what the teacher computes in.

        Raises:
            EncodingNotOfferedError: this provider offers no `Hidden`.
            TeacherError: one of its kinds, when there is no answer.
        """
        del value_type
        raise EncodingNotOfferedError("this provider offers no Hidden answers, and so no output head")

    def logits(
        self,
        input_ids: TokenRows,
        *,
        encoding: Encoding | None = None,
        positions: PositionChoice | None = None,
        temperature: float = 1.0,
        vocabulary_size: int = 0,
        candidate_ids: CandidateRows | None = None,
    ) -> tuple[Payload, ...]:
        """Ask about plain sequences of ids: one payload each, in order.

        By default every logit (`Dense()`) at every position (`All()`) of each sequence. `positions` are the same for
        all, or one choice for each. With `candidate_ids`, `[P, K]` or `[P]` for each sequence, it is the logits at
        these ids, none of them twice at a position; they stand rising in the payload's `token_ids`, whatever order
        they were given in. `log_probs` keeps the order.

        Raises:
            InvalidRequestError: an argument that no teacher could serve.
            TeacherError: one of its kinds, when there is no answer.
        """
        request = plain_request(
            input_ids,
            encoding=encoding,
            positions=positions,
            temperature=temperature,
            vocabulary_size=vocabulary_size,
            candidate_ids=candidate_ids,
        )
        return self.answer(request).payloads

    def log_probs(
        self,
        input_ids: TokenRows,
        candidate_ids: CandidateRows | None = None,
        *,
        positions: PositionChoice | None = None,
        temperature: float = 1.0,
        vocabulary_size: int = 0,
    ) -> list[Tensor]:
        """Return the teacher's log-probabilities of named tokens, float32, one tensor for each sequence.

        Args:
            input_ids: the sequences.
            candidate_ids: `[P, K]` or `[P]` for each sequence: what might follow each position asked for, in any
                order, and twice if need be. The result has the same shape and order. By default the tokens that do
                follow: `[L - 1]` log-probabilities of a sequence of L ids, of all but its first.
            positions: the same for all sequences, or one choice for each. By default all, or with no `candidate_ids`
                all but the last, which nothing follows.
            temperature: T of the softmax.
            vocabulary_size: N: the softmax covers the ids below it; 0 is the teacher's whole vocabulary.

        Raises:
            InvalidRequestError: an argument that no teacher could serve.
            TeacherError: one of its kinds, when there is no answer.
        """
        scoring = plan_scoring(
            input_ids, candidate_ids, positions=positions, temperature=temperature, vocabulary_size=vocabulary_size
        )
        return scoring.read(self.answer(scoring.request).payloads)


class StudentLogitsProvider(ABC):
    """Computes a student's logits and applies gradients with respect to them.

    A row is one prediction. `compute_logits` and `apply_gradients` speak of the same rows in the same order.
    """

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """V: the width of a logit row."""

    @abstractmethod
    def compute_logits(self, input_ids: TokenBatch) -> Tensor:
        """Return `[B, V]`: for each sequence, the logits at its last position."""

    @abstractmethod
    def compute_position_logits(self, input_ids: TokenBatch) -> list[Tensor]:
        """Return one `[L_i, V]` for each sequence: the logits at every position."""

    @abstractmethod
    def apply_gradients(self, gradients: Tensor | SequenceOf[Tensor], num_valid: int | None = None) -> None:
        """Take one optimiser step.

        `gradients` has the shape of what was computed last: `[B, V]`, or one `[L_i, V]` for each sequence; each
        row is the derivative of that row's loss, not yet averaged: the step divides by `num_valid`, by default the
        number of rows. An empty gradient changes nothing.

        Raises:
            ValueError: rows of another number or width than were computed.
        """

    @abstractmethod
    def save_checkpoint(self, folder: Path) -> None:
        """Write everything that the student has learnt into `folder`, completely or not at all.

        Raises:
            CheckpointError: nothing to save, a NaN, or a failed write.
        """


__all__ = [
    "All",
    "Answer",
    "Last",
    "StudentLogitsProvider",
    "TeacherLogitsProvider",
    "TokenBatch",
    "TokenRows",
    "plain_request",
]
