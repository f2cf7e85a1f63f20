"""What a backend is: it turns a batch of sequences into hidden rows, and hidden rows into logits.

The two halves are apart so that nobody ever holds `[positions, V]` whole: the head runs over row chunks, each of
which is encoded before the next is computed. A backend knows nothing of requests, caches, encodings or transports,
and is called from one thread at a time. Shapes: P positions, V vocabulary, D hidden width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from torch import Tensor

from stillhouse.fingerprint import backend_fingerprint
from stillhouse.payloads import OutputHead
from stillhouse.request import Sequence


@dataclass(frozen=True, slots=True)
class BackendDescription:
    """What a backend runs.

    `hidden_size` is D where the rows are true hidden states from which a caller with the output head could rebuild
    the logits, and 0 where they are something that only the backend's own `head` understands. `max_sequence_tokens`
    is the longest sequence that the model was made for. `mode` says whether an answer's bytes follow from its
    request alone (`deterministic`) or agree to a tolerance (`throughput`). `tokens` are the tokenizer's, by id.
    `shapes` names, for people, what else the bytes depend on in deterministic mode: the shapes that the model runs
    in, and the machine. It is part of the fingerprint.
    """

    model: str
    weights_fingerprint: str
    tokenizer_fingerprint: str
    vocabulary_size: int
    hidden_size: int
    max_sequence_tokens: int
    compute_dtype: str
    device_kind: str
    library_version: str
    attention: str
    mode: str
    tokens: tuple[str, ...] = ()
    shapes: str = ""

    @property
    def fingerprint(self) -> str:
        """Identifies everything that the bytes of an answer depend on."""
        return backend_fingerprint(
            weights=self.weights_fingerprint,
            compute_dtype=self.compute_dtype,
            device_kind=self.device_kind,
            torch_version=self.library_version,
            attention=self.attention,
            mode=f"{self.mode} {self.shapes}" if self.shapes else self.mode,
        )


@dataclass(frozen=True, slots=True)
class HiddenRows:
    """What `forward` gives: for each sequence `[P, D]`, one row per position asked for, on the backend's device.

    `padding_tokens` were computed only to make the batch a rectangle.
    """

    rows: tuple[Tensor, ...]
    padding_tokens: int


class TeacherBackend(ABC):
    """Runs one model. Called from one thread at a time, and that thread may be another than the one that made it."""

    @abstractmethod
    def describe(self) -> BackendDescription:
        """Return what is run. Quick: worked out once, while loading."""

    @abstractmethod
    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        """Run one batch; the sequences have been checked against the description.

        Attention never crosses from one segment of a sequence to another, and neither padding nor the other
        sequences of the batch change an answer by more than rounding; in deterministic mode by not one bit.

        Raises:
            torch.OutOfMemoryError: the batch does not fit; a part of it is then tried.
        """

    @abstractmethod
    def head(self, hidden_rows: Tensor) -> Tensor:
        """Turn `[p, D]` of what `forward` gave into logits `[p, V]`, of a floating-point dtype.

        In deterministic mode the bits of a row follow from it, p and its index. Raises as `forward` does.
        """

    def padded_tokens(self, lengths: SequenceOf[int]) -> int:
        """Return what a batch of sequences of so many tokens each costs, in tokens with all padding.

        A further sequence never lowers it. By default all are padded to the longest.
        """
        return len(lengths) * max(lengths)

    def token_ids(self, text: str) -> list[int] | None:
        """Return the ids that the model's tokenizer makes of a text, for people who look at the live page.

        None where there is no tokenizer. Called from any thread, beside `forward` too.
        """
        del text
        return None

    def output_head(self) -> OutputHead | None:
        """Return the head with which a caller rebuilds the logits from `forward`'s rows; None offers no HIDDEN.

        Not None only where `OutputHead.logits` gives what `head` gives, but for rounding. Its tensors are the
        model's own, on its device: they are read, never changed.
        """
        return None
