"""The forms that an answer can be asked for in: one frozen class each, validating itself.

What comes back in such a form is in `payloads`. Knows nothing of tensors or transports.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import pairwise
from operator import index
from typing import Literal

from stillhouse.errors import InvalidRequestError

ValueType = Literal["float32", "float16", "bfloat16"]
"""The element types that values travel in."""

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Dense:
    """All N logits of a position. Exact to the value type, which is float32, float16 or bfloat16."""

    value_type: ValueType = "float32"

    def __post_init__(self) -> None:
        _check_value_type("dense.value_type", self.value_type, ("float32", "float16", "bfloat16"))


@dataclass(frozen=True, slots=True)
class Hidden:
    """The final hidden state of a position, from which the output head rebuilds the logits at any temperature."""

    value_type: ValueType = "bfloat16"

    def __post_init__(self) -> None:
        _check_value_type("hidden.value_type", self.value_type, ("bfloat16", "float32"))


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest logits, with the log-normaliser and the log of the tail's mass at T = 1 and at the asked T.

    The head is exact to the value type (float16 or float32); of the tail, only its mass is known.
    """

    k: int
    value_type: ValueType = "float16"

    def __post_init__(self) -> None:
        _check_at_least_one("top_k.k", self.k)
        _check_value_type("top_k.value_type", self.value_type, ("float16", "float32"))


@dataclass(frozen=True, slots=True)
class Sampled:
    """Draws from softmax(logits / T), as distinct ids and counts: unbiased, for loss and gradient."""

    draws: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        _check_at_least_one("sampled.draws", self.draws)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise InvalidRequestError(f"sampled.seed must be an integer from 0 to {MAX_SEED}; got {shown(self.seed)}")


@dataclass(frozen=True, slots=True)
class Candidates:
    """Logits at the ids that the caller names, and of all other ids their mass.

    `token_ids`, strictly increasing, are asked about at every position. Without any, each sequence names those of
    each of its positions in its `candidate_ids`.
    """

    token_ids: tuple[int, ...] = ()
    value_type: ValueType = "float32"

    def __init__(self, token_ids: Iterable[int] = (), value_type: ValueType = "float32") -> None:
        try:
            object.__setattr__(self, "token_ids", tuple(map(index, token_ids)))
        except TypeError as error:  # int() would make ids of floats and of the digits of a string
            raise InvalidRequestError(f"candidates.token_ids must be integers; got {token_ids!r:.100}") from error
        object.__setattr__(self, "value_type", value_type)
        if not is_rising(self.token_ids):
            raise InvalidRequestError(
                f"candidates.token_ids must be strictly increasing from 0 upwards; got {first_fall(self.token_ids)}"
            )
        _check_value_type("candidates.value_type", value_type, ("float32", "float16"))


Encoding = Dense | Hidden | TopK | Sampled | Candidates


def is_rising(ids: SequenceOf[int]) -> bool:
    """Return whether ids are strictly increasing from 0 upwards, as an encoding names them."""
    return not ids or (ids[0] >= 0 and all(a < b for a, b in pairwise(ids)))


def shown(value: object) -> str:
    """Return a value for an error message, in few words: Python itself refuses to write a giant integer."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.100}"


def first_fall(ids: SequenceOf[int]) -> str:
    """Return, for a message, where ids that are not rising stop being so."""
    if ids[0] < 0:
        return shown(ids[0])
    return next(f"{shown(b)} after {shown(a)}" for a, b in pairwise(ids) if b <= a)


def _check_value_type(field: str, value: object, allowed: tuple[ValueType, ...]) -> None:
    if value not in allowed:
        raise InvalidRequestError(f"{field} must be one of {', '.join(allowed)}; got {shown(value)}")


def _check_at_least_one(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequestError(f"{field} must be an integer of at least 1; got {shown(value)}")
