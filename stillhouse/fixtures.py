"""A teacher and a student with no model, to test a training loop in milliseconds.

    teacher, student = FixtureTeacher(100), FixtureStudent(100, learning_rate=0.5)
    input_ids, labels = [[3, 1, 4], [1, 5]], [1, 9]
    for _ in range(10):
        loss, gradients = kd_step(teacher, input_ids, labels, 4.0, 0.0, student.compute_logits)
        student.apply_gradients(gradients)      # the loss falls at every step

What either answers can be foretold by hand, so that a loop's own faults show: an off-by-one, a row left out, a batch
averaged twice, an answer given to the wrong sequence.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from stillhouse.encode import encode_hidden, encode_logits
from stillhouse.encodings import Candidates, Dense, Hidden, Sampled, TopK, ValueType
from stillhouse.errors import CheckpointError
from stillhouse.fingerprint import fingerprint, tokens_fingerprint
from stillhouse.payloads import OutputHead, Payload
from stillhouse.providers import Answer, StudentLogitsProvider, TeacherLogitsProvider, TokenBatch
from stillhouse.request import Limits, LogitsRequest, Sequence, TeacherDescription
from stillhouse.tensor_bytes import DTYPES
from stillhouse.version import __version__

PREFERRED_LOGIT = 10.0
"""The logit of the token that the fixture prefers; all others are 0."""

LARGEST_HEAD = 2048
"""The most ids that the fixture has hidden states for. Every id is preferred somewhere, so that no fewer than one
dimension an id will do, and the head is as wide as it is long: 16 MiB at this size, 9 GiB at a real vocabulary's."""

CHECKPOINT_FILE = "fixture_student.safetensors"


class FixtureTeacher(TeacherLogitsProvider):
    """Prefers the token that comes next: logit 10.0 there, 0.0 everywhere else.

    At each position that is the next token of the sequence (of its document, where documents are packed), and at the
    last position, which has none, its own. A token outside the vocabulary counts as token 0. Answers every encoding,
    through the encoder that a real teacher's answers go through (`Hidden` up to a vocabulary of `LARGEST_HEAD`): a
    hidden state has a 1 at the preferred token's place. An empty batch has an empty answer.
    """

    def __init__(self, vocab_size: int) -> None:
        tokens = tuple(str(token_id) for token_id in range(_check_size(vocab_size)))
        weights = fingerprint("fixture", vocab_size)
        self._head: OutputHead | None = None
        self._description = TeacherDescription(
            model="fixture",
            fingerprint=weights,
            weights_fingerprint=weights,
            tokenizer_fingerprint=tokens_fingerprint(tokens),
            vocabulary_size=vocab_size,
            tokenizer_size=vocab_size,
            hidden_size=vocab_size if vocab_size <= LARGEST_HEAD else 0,
            encodings=(Dense, *((Hidden,) if vocab_size <= LARGEST_HEAD else ()), TopK, Sampled, Candidates),
            limits=Limits(),
            compute_dtype="float32",
            mode="deterministic",
            version=__version__,
            tokens=tokens,
        )

    def describe(self) -> TeacherDescription:
        """Return the description; the tokens are the decimal numbers of their ids."""
        return self._description

    def answer(self, request: LogitsRequest) -> Answer:
        """Answer a request.

        Raises:
            TeacherError: as a service would, except that an id outside the vocabulary counts as 0.
        """
        size = self._description.vocabulary_size
        known = replace(request, sequences=tuple(_known(sequence, size) for sequence in request.sequences))
        known.check(self._description)
        payloads = tuple(self._payload(sequence, known) for sequence in known.sequences)
        return Answer(payloads, self._description.fingerprint)

    def output_head(self, value_type: ValueType | None = None) -> OutputHead:
        """Return the head; both value types hold it exactly."""
        if Hidden not in self._description.encodings:
            return super().output_head(value_type)
        if self._head is None:
            self._head = fixture_head(self._description.vocabulary_size)
        return self._head.to(dtype=DTYPES[value_type or "float32"], device=self._head.weight.device)

    def _payload(self, sequence: Sequence, request: LogitsRequest) -> Payload:
        states = fixture_states(sequence, self._description.vocabulary_size)
        if isinstance(request.encoding, Hidden):
            return encode_hidden(states, request.encoding)
        return encode_logits(
            [states * PREFERRED_LOGIT],
            request.encoding,
            sequence=sequence,
            temperature=request.temperature,
            vocabulary_size=request.effective_vocabulary_size(self._description.vocabulary_size),
        )


def preferred_tokens(sequence: Sequence) -> Tensor:
    """Return the token that the fixture prefers at each position asked for, `[P]` int64."""
    lengths = sequence.segment_lengths or (len(sequence.token_ids),)
    documents = [sequence.token_ids[a:b] for a, b in pairwise(accumulate(lengths, initial=0))]
    following = torch.tensor([token for ids in documents for token in (*ids[1:], ids[-1])], dtype=torch.int64)
    return following[list(sequence.position_indices())]


def fixture_states(sequence: Sequence, vocabulary_size: int) -> Tensor:
    """Return the fixture's final hidden states `[P, V]` float32: 1 at the preferred token, 0 elsewhere."""
    preferred = preferred_tokens(sequence)
    return torch.zeros(len(preferred), vocabulary_size).scatter_(1, preferred[:, None], 1.0)


def fixture_head(vocabulary_size: int) -> OutputHead:
    """Return the head that makes the fixture's logits of its hidden states, exactly."""
    return OutputHead(PREFERRED_LOGIT * torch.eye(vocabulary_size))


class FixtureStudent(StudentLogitsProvider):
    """One row of logits, learnt, and the same for every input.

    `row` is `[vocab_size]` float32. A step moves it by `-learning_rate` times the average of the gradient's rows.
    """

    def __init__(self, vocab_size: int, initial_value: float = 0.0, learning_rate: float = 0.1) -> None:
        self.row = torch.full((_check_size(vocab_size),), float(initial_value))
        self.learning_rate = learning_rate
        self._computed_rows: int | None = None

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return len(self.row)

    def compute_logits(self, input_ids: TokenBatch) -> Tensor:
        """Return the row, `[B, V]`, once for each sequence."""
        self._computed_rows = len(input_ids)
        return self.row.repeat(len(input_ids), 1)

    def compute_position_logits(self, input_ids: TokenBatch) -> list[Tensor]:
        """Return the row, `[L_i, V]`, once for each position of each sequence."""
        self._computed_rows = sum(len(ids) for ids in input_ids)
        return [self.row.repeat(len(ids), 1) for ids in input_ids]

    def apply_gradients(self, gradients: Tensor | SequenceOf[Tensor], num_valid: int | None = None) -> None:
        """Take one step of gradient descent; all rows count, and the sum is divided by `num_valid`.

        Raises:
            ValueError: a row of another width, a number of rows that was not computed, a value that is not finite, or
                `num_valid` below 1. The student is then as it was.
        """
        if len(gradients) == 0:
            return
        blocks = [torch.as_tensor(gradient) for gradient in gradients]
        for block in blocks:
            if block.shape[-1:] != (self.vocabulary_size,):
                raise ValueError(
                    f"a gradient row must have {self.vocabulary_size} values; got shape {tuple(block.shape)}"
                )
        rows = torch.cat([block.reshape(-1, self.vocabulary_size) for block in blocks])
        if len(rows) == 0:
            return
        if self._computed_rows not in (None, len(rows)):
            raise ValueError(f"gradients must have the {self._computed_rows} rows computed last; got {len(rows)}")
        if not bool(rows.isfinite().all()):
            raise ValueError("gradients must be finite; got a NaN or an infinity")
        divisor = len(rows) if num_valid is None else num_valid
        if not divisor >= 1:  # so that a NaN is refused too
            raise ValueError(f"num_valid must be at least 1; got {divisor}")
        self.row = self.row - self.learning_rate * rows.to(torch.float32).sum(0) / divisor

    def save_checkpoint(self, folder: Path) -> None:
        """Write the row into `folder`, completely or not at all.

        Raises:
            CheckpointError: the row is not finite, or could not be written.
        """
        if not bool(self.row.isfinite().all()):
            raise CheckpointError(f"{folder}: the row holds a NaN or an infinity; nothing was written")
        aside = folder / f".{CHECKPOINT_FILE}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                file.write(save({"row": self.row}, {"learning_rate": repr(self.learning_rate)}))
                file.flush()
                os.fsync(file.fileno())
            aside.replace(folder / CHECKPOINT_FILE)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise CheckpointError(f"{folder}: the checkpoint could not be written: {error}") from error

    def load_checkpoint(self, folder: Path) -> None:
        """Read what `save_checkpoint` wrote.

        Raises:
            CheckpointError: it is absent or damaged, or of another vocabulary.
        """
        try:
            row = load_file(folder / CHECKPOINT_FILE)["row"]
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{folder}: no readable checkpoint of a fixture student: {error}") from error
        if row.shape != self.row.shape:
            raise CheckpointError(f"{folder}: the checkpoint has {len(row)} values, this student {len(self.row)}")
        self.row = row


def _known(sequence: Sequence, vocabulary_size: int) -> Sequence:
    ids = tuple(token if token < vocabulary_size else 0 for token in sequence.token_ids)
    return replace(sequence, token_ids=ids)


def _check_size(vocab_size: int) -> int:
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < 1:
        raise ValueError(f"vocab_size must be an integer of at least 1; got {vocab_size!r}")
    return vocab_size
