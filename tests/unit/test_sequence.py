"""A sequence that no teacher could be asked about is refused where it is made, with the field and its value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stillhouse.encodings import Candidates, Dense, Sampled
from stillhouse.errors import InvalidRequestError
from stillhouse.request import All, Explicit, From, LogitsRequest, Sequence


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_ids": (1.5, 2)}, r"token_ids must hold integers; got \(1.5, 2\)"),
        ({"token_ids": ("a",)}, r"token_ids must hold integers; got \('a',\)"),
        ({"token_ids": None}, "token_ids must hold integers; got None"),
        ({"token_ids": np.array([1, 2])}, r"token_ids must hold integers; got array\(\[1, 2\]\)"),
        ({"token_ids": (3, -7)}, "token_ids must be from 0 to 4294967295; got -7"),
        ({"token_ids": (3, 2**32)}, "token_ids must be from 0 to 4294967295; got 4294967296"),
        ({"segment_lengths": (1.5, 1.5)}, "segment_lengths must hold integers"),
        ({"segment_lengths": (0, 3)}, "segment_lengths must each be at least 1; got 0"),
        ({"positions": "all"}, r"positions must be Last\(\), All\(\), .*; got 'all'"),
        ({"positions": All}, r"positions must be Last\(\), All\(\), "),
        ({"positions": From(-1)}, "positions.from must be from 0 to below the sequence's length 3; got -1"),
        ({"positions": From(0.5)}, "positions.from must hold integers"),  # type: ignore[arg-type]  # on purpose
        ({"positions": Explicit((0.5,))}, "positions.explicit must hold"),  # type: ignore[arg-type]  # on purpose
        ({"positions": Explicit((0, 2, 2))}, "positions.explicit must be strictly increasing .*; got 2 after 2"),
        ({"positions": All(), "candidate_ids": ((1,), (2,), (-3,))}, r"candidate_ids\[2\] must be .*; got -3"),
        ({"positions": All(), "candidate_ids": ((1, 3), (5, 2), (2, 3))}, r"candidate_ids\[1\] must .* got 2 after 5"),
        ({"positions": All(), "candidate_ids": ((1,), (1, 2), (3,))}, r"as many ids for each .* got \[1, 2\] of them"),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Sequence(**{"token_ids": (1, 2, 3)} | fields)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ((1.5, 2), r"must be integers; got \(1.5, 2\)"),
        ("123", "must be integers; got '123'"),
        (None, "must be integers; got None"),
        ((3, 2), "must be strictly increasing from 0 upwards; got 2 after 3"),
        ((-1, 2), "must be strictly increasing from 0 upwards; got -1"),
    ],
)
def test_candidates_are_integers_and_rise(token_ids: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"candidates.token_ids {message}"):
        Candidates(token_ids)


def test_integers_and_floats_of_other_libraries_are_numbers() -> None:
    assert Candidates(np.array([1, 5])) == Candidates((1, 5))
    sequence = Sequence(tuple(np.array([1, 2])), positions=From(np.int64(1)))  # type: ignore[arg-type]  # on purpose
    assert sequence.num_positions == 1
    request = LogitsRequest((Sequence((1,)),), Dense(), temperature=np.float32(1.5))  # type: ignore[arg-type]  # on purpose
    assert type(request.temperature) is float


@pytest.mark.parametrize("size", [2.5, True, "9", -1])
def test_a_vocabulary_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"vocabulary_size must be an integer, 0 .all. or more; got {size!r}"):
        LogitsRequest((Sequence((1,)),), vocabulary_size=size)


def test_what_is_no_sequence_is_refused_by_its_place() -> None:
    with pytest.raises(InvalidRequestError, match=r"sequences\[1\] must be a Sequence; got \(1, 2\)"):
        LogitsRequest((Sequence((1,)), (1, 2)))  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("sign", [1, -1])
def test_a_giant_integer_is_refused_in_few_words(sign: int) -> None:
    giant = sign * 10**5000
    for ask in (
        lambda: Sequence((giant,)),
        lambda: Sequence((1,), (giant,)),
        lambda: Sequence((1,), (), From(giant)),
        lambda: Sequence((1,), (), Explicit((giant,))),
        lambda: Sequence((1,), candidate_ids=((giant, 3),)),
        lambda: Sampled(giant if giant < 0 else 1, giant),
        lambda: Candidates((giant, 3)),
    ):
        with pytest.raises(InvalidRequestError, match="an integer of 16610 bits"):
            ask()
