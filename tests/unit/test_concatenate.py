"""Payloads laid end to end: the rows of all, and never rows that were asked for in different ways."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stillhouse.encode import encode_logits
from stillhouse.encodings import Candidates, Dense, Encoding, TopK
from stillhouse.errors import InvalidRequestError
from stillhouse.payloads import DenseLogits, HiddenStates, Payload, SampledCounts, concatenate
from tests.asked import every_position

V = 8
LOGITS = torch.randn(6, V, generator=torch.Generator().manual_seed(0))


def encoded(rows: slice, encoding: Encoding, temperature: float = 2.0) -> Payload:
    logits = LOGITS[rows]
    sequence = every_position(len(logits))
    return encode_logits([logits], encoding, sequence=sequence, temperature=temperature, vocabulary_size=V)


def same(a: Payload, b: Payload) -> bool:
    fields = [(getattr(a, name), getattr(b, name)) for name in type(a).__dataclass_fields__]
    return type(a) is type(b) and all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in fields)


@pytest.mark.parametrize("encoding", [Dense(), Dense("bfloat16"), TopK(3), Candidates([1, 5])])
def test_parts_laid_end_to_end_are_the_whole(encoding: Encoding) -> None:
    parts = [encoded(rows, encoding) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert same(concatenate(parts), encoded(slice(0, 6), encoding))


def test_hidden_states_and_draws_are_laid_end_to_end() -> None:
    hidden = concatenate([HiddenStates(LOGITS[:2]), HiddenStates(LOGITS[2:])])
    assert same(hidden, HiddenStates(LOGITS))

    def draws(counts: list[list[int]]) -> SampledCounts:
        offsets = torch.tensor([0, *(len(row) for row in counts)]).cumsum(0)
        flat = torch.tensor([count for row in counts for count in row], dtype=torch.int32)
        ids = torch.cat([torch.arange(len(row), dtype=torch.int32) for row in counts])
        return SampledCounts(offsets, ids, flat, torch.zeros(len(counts)), 4, 1.0, V)

    assert same(concatenate([draws([[4], [1, 3]]), draws([[2, 1, 1]])]), draws([[4], [1, 3], [2, 1, 1]]))


def test_one_payload_is_returned_as_it_is() -> None:
    payload = DenseLogits(LOGITS)
    assert concatenate([payload]) is payload


def test_rows_asked_for_in_different_ways_are_refused() -> None:
    top_k = encoded(slice(0, 2), TopK(3))
    for others, message in (
        ([], "at least one payload"),
        ([top_k, encoded(slice(2, 3), Dense())], r"the first is TopKLogits, payloads\[1\] is DenseLogits"),
        ([top_k, encoded(slice(2, 3), TopK(3), 1.0)], "agree in temperature"),
        ([top_k, encoded(slice(2, 3), TopK(4))], "agree in the dtype and width of token_ids"),
        ([top_k, encoded(slice(2, 3), TopK(3, "float32"))], "agree in the dtype and width of logits"),
        ([encoded(slice(0, 2), Candidates([1])), encoded(slice(2, 3), Candidates([2]))], "agree in token_ids"),
        ([DenseLogits(LOGITS), DenseLogits(LOGITS[:, 1:])], "agree in the dtype and width of logits"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            concatenate(others)
    assert same(top_k, replace(top_k))
