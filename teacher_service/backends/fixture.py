"""A teacher with no model: it prefers the token that comes next, so that an answer can be foretold.

The same answers as `stillhouse.fixtures.FixtureTeacher`, through the whole service.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from stillhouse.fingerprint import fingerprint, tokens_fingerprint
from stillhouse.fixtures import LARGEST_HEAD, PREFERRED_LOGIT, fixture_head, fixture_states, preferred_tokens
from stillhouse.payloads import OutputHead
from stillhouse.request import Sequence
from teacher_service.backends.base import BackendDescription, HiddenRows, TeacherBackend

_MAX_SEQUENCE_TOKENS = 2**20


class FixtureBackend(TeacherBackend):
    """Logit 10.0 at the next token of the document, at its last position at its own token; 0.0 elsewhere."""

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        self._tokens = tuple(map(str, range(vocabulary_size)))
        self._output_head = fixture_head(vocabulary_size) if vocabulary_size <= LARGEST_HEAD else None

    def describe(self) -> BackendDescription:
        """Describe a model of this vocabulary, in float32; its tokens are the decimal numbers of their ids."""
        return BackendDescription(
            model="fixture",
            weights_fingerprint=fingerprint("fixture", self._vocabulary_size),
            tokenizer_fingerprint=tokens_fingerprint(self._tokens),
            vocabulary_size=self._vocabulary_size,
            hidden_size=0 if self._output_head is None else self._vocabulary_size,
            max_sequence_tokens=_MAX_SEQUENCE_TOKENS,
            compute_dtype="float32",
            device_kind="cpu",
            library_version="1",
            attention="none",
            mode="deterministic",
            tokens=self._tokens,
        )

    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        """Return the hidden states; of a vocabulary too large for them the preferred tokens, `[P, 1]` int64."""
        if self._output_head is None:
            rows = tuple(preferred_tokens(sequence).unsqueeze(1) for sequence in sequences)
        else:
            rows = tuple(fixture_states(sequence, self._vocabulary_size) for sequence in sequences)
        return HiddenRows(rows, padding_tokens=0)

    def head(self, hidden_rows: Tensor) -> Tensor:
        """Return `[p, V]` float32 with the preferred tokens raised."""
        if self._output_head is not None:
            return hidden_rows * PREFERRED_LOGIT
        logits = torch.zeros(len(hidden_rows), self._vocabulary_size)
        return logits.scatter_(1, hidden_rows, PREFERRED_LOGIT)

    def token_ids(self, text: str) -> list[int]:
        """Return the numbers that the text holds, as far as they are ids."""
        numbers = (int(word) for word in text.split() if word.isascii() and word.isdecimal() and len(word) < 10)
        return [number for number in numbers if number < self._vocabulary_size]

    def output_head(self) -> OutputHead | None:
        """Return the head, where the vocabulary is small enough for one."""
        return self._output_head
