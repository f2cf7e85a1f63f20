"""What is asked of a teacher, and the one place where a request is checked.

Every door (Python, gRPC, HTTP) builds a `LogitsRequest`; building one checks everything that can be known without
a teacher, and `check` the rest, against the teacher's own description. Knows nothing of transports or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK, shown
from stillhouse.errors import (
    EncodingNotOfferedError,
    FingerprintMismatchError,
    InvalidRequestError,
    RequestTooLongError,
)
from stillhouse.sequence import MAX_TOKEN_ID, All, Explicit, From, Last, Positions, Sequence

CacheMode = Literal["use", "refresh", "bypass"]
"""use: answer from the cache and remember; refresh: compute anew and overwrite; bypass: leave the cache alone."""

__all__ = [
    "MAX_TOKEN_ID",
    "All",
    "CacheMode",
    "Explicit",
    "From",
    "Last",
    "Limits",
    "LogitsRequest",
    "Positions",
    "Sequence",
    "TeacherDescription",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that a teacher holds a request to. Sequences, tokens, ids and bytes, as the names say."""

    max_sequences: int = 1024
    max_sequence_tokens: int = 8192
    max_request_tokens: int = 131_072
    max_top_k: int = 4096
    max_draws: int = 4096
    max_candidates: int = 4096
    max_message_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class TeacherDescription:
    """What a teacher serves. The fields mean what `GetTeacherResponse` in the contract says of them."""

    model: str
    fingerprint: str
    weights_fingerprint: str
    tokenizer_fingerprint: str
    vocabulary_size: int
    tokenizer_size: int
    hidden_size: int
    encodings: tuple[type[Encoding], ...]
    limits: Limits
    compute_dtype: str
    mode: str
    version: str
    tokens: tuple[str, ...] = ()
    device_kind: str = ""
    """Empty where nobody says it: a service of an earlier release, or a store."""


@dataclass(frozen=True, slots=True)
class LogitsRequest:
    """A batch of sequences of any lengths, and the form of the answer.

    `temperature` divides the logits before every softmax. `vocabulary_size` is N: log-normalisers, draws and dense
    values cover the ids below it; 0 means the teacher's whole vocabulary. An empty batch has an empty answer.

    Raises:
        InvalidRequestError: a field that no teacher could serve, named with its value.
    """

    sequences: tuple[Sequence, ...]
    encoding: Encoding = field(default_factory=Dense)
    temperature: float = 1.0
    vocabulary_size: int = 0
    cache_mode: CacheMode = "use"
    expected_fingerprint: str = ""

    def __post_init__(self) -> None:
        temperature: object = self.temperature
        if isinstance(temperature, bool) or not isinstance(temperature, Real):
            raise InvalidRequestError(f"temperature must be a number; got {temperature!r}")
        object.__setattr__(self, "temperature", float(temperature))
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InvalidRequestError(f"temperature must be finite and above 0; got {temperature}")
        size: object = self.vocabulary_size
        if isinstance(size, bool) or not isinstance(size, Integral) or not 0 <= int(size) <= MAX_TOKEN_ID + 1:
            raise InvalidRequestError(f"vocabulary_size must be an integer, 0 (all) or more; got {shown(size)}")
        if self.cache_mode not in ("use", "refresh", "bypass"):
            raise InvalidRequestError(f"cache_mode must be use, refresh or bypass; got {self.cache_mode!r}")
        if not isinstance(self.encoding, Encoding):
            raise InvalidRequestError(f"encoding must be one of {Encoding}; got {self.encoding!r}")
        names_its_own = isinstance(self.encoding, Candidates) and not self.encoding.token_ids
        for index, sequence in enumerate(self.sequences):
            if not isinstance(sequence, Sequence):
                raise InvalidRequestError(f"sequences[{index}] must be a Sequence; got {sequence!r:.100}")
            if bool(sequence.candidate_ids) != names_its_own:
                raise InvalidRequestError(
                    f"sequences[{index}].candidate_ids must be given with an encoding Candidates that names no "
                    f"token_ids itself, and with no other; the encoding is {self.encoding!r}"
                )

    @property
    def num_tokens(self) -> int:
        """Tokens in all sequences together."""
        return sum(len(sequence.token_ids) for sequence in self.sequences)

    @property
    def num_positions(self) -> int:
        """Positions asked for in all sequences together."""
        return sum(sequence.num_positions for sequence in self.sequences)

    def check(self, teacher: TeacherDescription) -> None:
        """Check what only the teacher can know: its vocabulary, limits, encodings and fingerprint.

        Raises:
            InvalidRequestError: an id, N, k, or candidate outside the vocabulary.
            RequestTooLongError: more than the teacher's limits.
            EncodingNotOfferedError: an encoding that it does not offer.
            FingerprintMismatchError: another teacher was expected.
        """
        if self.expected_fingerprint not in ("", teacher.fingerprint):
            raise FingerprintMismatchError(
                f"expected_fingerprint is {self.expected_fingerprint}, but this teacher's is {teacher.fingerprint}: "
                "its weights or settings have changed; start the run anew or serve the earlier teacher"
            )
        if not isinstance(self.encoding, teacher.encodings):
            offered = ", ".join(encoding.__name__ for encoding in teacher.encodings)
            raise EncodingNotOfferedError(
                f"encoding {type(self.encoding).__name__} is not offered by this teacher; it offers {offered}"
            )
        self._check_vocabulary(teacher.vocabulary_size)
        self._check_limits(teacher.limits)

    def effective_vocabulary_size(self, teacher_vocabulary_size: int) -> int:
        """Return N: the asked one, or the teacher's whole vocabulary."""
        return self.vocabulary_size or teacher_vocabulary_size

    def _check_vocabulary(self, vocabulary_size: int) -> None:
        if self.vocabulary_size > vocabulary_size:
            raise InvalidRequestError(
                f"vocabulary_size must be at most the teacher's {vocabulary_size}; got {self.vocabulary_size}"
            )
        shared = self.effective_vocabulary_size(vocabulary_size)
        for index, sequence in enumerate(self.sequences):
            if max(sequence.token_ids) >= vocabulary_size:
                raise InvalidRequestError(
                    f"sequences[{index}].token_ids must be below the teacher's vocabulary size {vocabulary_size}; "
                    f"got {max(sequence.token_ids)}"
                )
        match self.encoding:
            case TopK(k=k) if k > shared:
                raise InvalidRequestError(f"top_k.k must be at most the vocabulary size {shared}; got {shown(k)}")
            case Candidates(token_ids=ids) if ids and ids[-1] >= shared:
                raise InvalidRequestError(
                    f"candidates.token_ids must be below the vocabulary size {shared}; got {shown(ids[-1])}"
                )
            case Candidates():
                for index, sequence in enumerate(self.sequences):
                    largest = max((ids[-1] for ids in sequence.candidate_ids), default=-1)
                    if largest >= shared:
                        raise InvalidRequestError(
                            f"sequences[{index}].candidate_ids must be below the vocabulary size {shared}; "
                            f"got {largest}"
                        )
            case _:
                pass

    def _check_limits(self, limits: Limits) -> None:
        _check_limit("sequences", len(self.sequences), limits.max_sequences, "sequences; send several requests")
        for index, sequence in enumerate(self.sequences):
            if (length := len(sequence.token_ids)) > (limit := limits.max_sequence_tokens):
                _check_limit(f"sequences[{index}].token_ids", length, limit, "tokens; cut it")
        _check_limit("sequences", self.num_tokens, limits.max_request_tokens, "tokens in all; send several requests")
        match self.encoding:
            case TopK(k=k):
                _check_limit("top_k.k", k, limits.max_top_k, "ids; use dense for more")
            case Sampled(draws=draws):
                _check_limit("sampled.draws", draws, limits.max_draws, "draws")
            case Candidates(token_ids=ids):
                _check_limit("candidates.token_ids", len(ids), limits.max_candidates, "ids")
                for index, sequence in enumerate(self.sequences):
                    name = f"sequences[{index}].candidate_ids"
                    _check_limit(name, sequence.num_candidates, limits.max_candidates, "ids a position")
            case Dense() | Hidden():
                pass


def _check_limit(field_name: str, value: int, limit: int, what: str) -> None:
    if value > limit:
        raise RequestTooLongError(f"{field_name}: {value} is over this teacher's limit of {limit} {what}")
