"""A request checks itself, once, for every door; each error names the field and the value."""

import dataclasses
import math
from typing import Any

import pytest

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import (
    EncodingNotOfferedError,
    FingerprintMismatchError,
    InvalidRequestError,
    RequestTooLongError,
)
from stillhouse.request import All, Explicit, From, Last, Limits, LogitsRequest, Positions, Sequence, TeacherDescription

TEACHER = TeacherDescription(
    model="m",
    fingerprint="f" * 32,
    weights_fingerprint="w" * 32,
    tokenizer_fingerprint="t" * 32,
    vocabulary_size=100,
    tokenizer_size=98,
    hidden_size=8,
    encodings=(Dense, TopK, Sampled, Candidates),
    limits=Limits(
        max_sequences=3, max_sequence_tokens=10, max_request_tokens=20, max_top_k=50, max_draws=60, max_candidates=4
    ),
    compute_dtype="float32",
    mode="throughput",
    version="0",
)


def request(*lengths: int, **fields: Any) -> LogitsRequest:
    return LogitsRequest(tuple(Sequence(tuple(range(length))) for length in lengths), **fields)


def test_a_sound_request_passes() -> None:
    request(3, 10, 1, encoding=TopK(50), temperature=2).check(TEACHER)


def test_an_empty_batch_is_a_sound_request() -> None:
    request().check(TEACHER)


@pytest.mark.parametrize(
    ("positions", "indices"),
    [(Last(), [3]), (All(), [0, 1, 2, 3]), (From(2), [2, 3]), (Explicit((0, 3)), [0, 3])],
)
def test_positions_count_over_the_whole_sequence(positions: Positions, indices: list[int]) -> None:
    sequence = Sequence((9, 9, 9, 9), segment_lengths=(2, 2), positions=positions)
    assert list(sequence.position_indices()) == indices
    assert sequence.num_positions == len(indices)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_ids": ()}, "token_ids"),
        ({"token_ids": (1, -1)}, "token_ids"),
        ({"token_ids": (1, 2**32)}, "token_ids"),
        ({"token_ids": (1, 2), "segment_lengths": (1,)}, "segment_lengths .* 2; got 1"),
        ({"token_ids": (1, 2), "segment_lengths": (2, 0)}, "segment_lengths"),
        ({"token_ids": (1, 2), "positions": From(2)}, "positions.from .* 2; got 2"),
        ({"token_ids": (1, 2), "positions": From(-1)}, "positions.from"),
        ({"token_ids": (1, 2), "positions": Explicit(())}, "positions.explicit"),
        ({"token_ids": (1, 2), "positions": Explicit((1, 1))}, "positions.explicit"),
        ({"token_ids": (1, 2), "positions": Explicit((0, 2))}, "positions.explicit .* 2; got 2"),
    ],
)
def test_a_sequence_that_no_teacher_could_serve_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Sequence(**fields)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, True, "1"])
def test_a_temperature_that_is_no_positive_number_is_refused(temperature: Any) -> None:
    with pytest.raises(InvalidRequestError, match="temperature"):
        request(2, temperature=temperature)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense("int8"), "dense.value_type"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: TopK(0), "top_k.k"),
        (lambda: TopK(4, "bfloat16"), "top_k.value_type"),
        (lambda: Sampled(0), "sampled.draws"),
        (lambda: Sampled(1, seed=-1), "sampled.seed"),
        (lambda: Candidates((2, 1)), "candidates.token_ids"),
        (lambda: Hidden("float16"), "hidden.value_type"),
    ],
)
def test_an_encoding_checks_itself(make: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        make()


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (request(2, encoding=TopK(100), vocabulary_size=99), InvalidRequestError, "top_k.k .* 99; got 100"),
        (request(2, encoding=Candidates((100,))), InvalidRequestError, "candidates.token_ids .* 100; got 100"),
        (request(2, vocabulary_size=101), InvalidRequestError, "vocabulary_size .* 100; got 101"),
        (LogitsRequest((Sequence((1,)), Sequence((100,)))), InvalidRequestError, r"sequences\[1\].*100; got 100"),
        (request(2, encoding=Hidden()), EncodingNotOfferedError, "Hidden is not offered"),
        (request(1, 1, 1, 1), RequestTooLongError, "sequences: 4 .* 3"),
        (request(11), RequestTooLongError, r"sequences\[0\].token_ids: 11 .* 10"),
        (request(10, 10, 1), RequestTooLongError, "21 .* 20"),
        (request(2, encoding=TopK(51)), RequestTooLongError, "top_k.k: 51 .* 50"),
        (request(2, encoding=Sampled(61)), RequestTooLongError, "sampled.draws: 61 .* 60"),
        (request(2, encoding=Candidates(range(5))), RequestTooLongError, "candidates.token_ids: 5 .* 4"),
        (request(2, expected_fingerprint="a" * 32), FingerprintMismatchError, "aaaa.*ffff"),
    ],
)
def test_a_request_outside_the_teachers_bounds_is_refused(
    asked: LogitsRequest, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        asked.check(TEACHER)


def test_the_expected_fingerprint_may_be_the_teachers() -> None:
    request(2, expected_fingerprint=TEACHER.fingerprint).check(TEACHER)


@pytest.mark.parametrize("encoding", [Dense(), TopK(3)])
def test_a_request_is_a_value(encoding: Encoding) -> None:
    one = request(2, encoding=encoding)
    assert one == dataclasses.replace(one)
    assert hash(one) == hash(dataclasses.replace(one))
