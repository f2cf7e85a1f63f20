"""The fixture's answers from a backend that counts what reaches the model, and takes as long as a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence as SequenceOf

from stillhouse.request import Sequence
from teacher_service.backends import HiddenRows
from teacher_service.backends.fixture import FixtureBackend

VOCABULARY_SIZE = 64


class CountingBackend(FixtureBackend):
    """Waits at its gate, then `seconds`; `batches` holds the lengths of what it was given."""

    def __init__(self, *, seconds: float = 0.0, vocabulary_size: int = VOCABULARY_SIZE) -> None:
        super().__init__(vocabulary_size)
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.batches: list[list[int]] = []
        self._seconds = seconds

    @property
    def num_tokens(self) -> int:
        """Tokens that the model was given."""
        return sum(map(sum, self.batches))

    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        self.batches.append([len(sequence.token_ids) for sequence in sequences])
        self.started.set()
        assert self.gate.wait(30)
        time.sleep(self._seconds)
        return super().forward(sequences)
