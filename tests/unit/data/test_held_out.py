"""Holding out: nothing on both sides, copies together, and about as much as was asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.data.held_out import Ranges, content_key, split
from stillhouse.errors import DataError


def corpus(documents: list[list[int]]) -> tuple[Ranges, np.ndarray, np.ndarray]:
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    token_ids = np.concatenate([np.array(document, dtype=np.uint32) for document in documents])
    keys = np.array([content_key(np.array(d, dtype="<u4").tobytes()) for d in documents], dtype=np.int64)
    return Ranges(np.cumsum(lengths) - lengths, lengths), keys, token_ids


def texts(ranges: Ranges, token_ids: np.ndarray) -> list[tuple[int, ...]]:
    pairs = zip(ranges.starts.tolist(), ranges.lengths.tolist(), strict=True)
    return [tuple(token_ids[start : start + length].tolist()) for start, length in pairs]


def test_whole_documents_are_held_out_where_there_are_many() -> None:
    documents = [[number] * 10 for number in range(100)]
    ranges, keys, token_ids = corpus(documents)
    train, held_out = split(ranges, keys, token_ids, target_tokens=200, block_size=8)
    assert held_out.num_tokens == 200
    assert sorted(texts(train, token_ids) + texts(held_out, token_ids)) == sorted(map(tuple, documents))


def test_copies_of_a_document_fall_on_one_side() -> None:
    documents = [[number % 10] * 5 for number in range(100)]
    train, held_out = split(*corpus(documents), target_tokens=200, block_size=8)
    token_ids = corpus(documents)[2]
    assert held_out.num_tokens == 200
    assert not set(texts(train, token_ids)) & set(texts(held_out, token_ids))


def test_the_choice_does_not_depend_on_the_order_of_documents() -> None:
    documents = [[number] * 10 for number in range(60)]
    chosen = []
    for order in (documents, documents[::-1]):
        ranges, keys, token_ids = corpus(order)
        chosen.append(sorted(texts(split(ranges, keys, token_ids, target_tokens=100, block_size=8)[1], token_ids)))
    assert chosen[0] == chosen[1]


@settings(deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.integers(2, 9), st.integers(2, 80))
def test_blocks_of_long_documents_are_held_out_and_nothing_is_lost(
    lengths: list[int], block_size: int, target: int
) -> None:
    tokens = iter(range(10**6))
    ranges, keys, token_ids = corpus([[next(tokens) for _ in range(length)] for length in lengths])
    try:
        train, held_out = split(ranges, keys, token_ids, target_tokens=target, block_size=block_size)
    except DataError:
        # Only where nothing small enough is there, or all of it is.
        assert target >= sum(lengths) or target < block_size
        return
    both = [token for text in texts(train, token_ids) + texts(held_out, token_ids) for token in text]
    assert sorted(both) == token_ids.tolist()
    assert 0 < held_out.num_tokens <= target
    edges = set(np.cumsum(lengths).tolist())
    for text in texts(train, token_ids) + texts(held_out, token_ids):
        assert not any(text[0] < edge <= text[-1] for edge in edges), "a range runs across two documents"


def test_training_pieces_that_follow_each_other_stay_one_document() -> None:
    ranges, keys, token_ids = corpus([list(range(80))])
    train, held_out = split(ranges, keys, token_ids, target_tokens=8, block_size=8)
    assert held_out.lengths.tolist() == [8]
    assert len(train.lengths) <= 2


def test_repeated_blocks_fall_on_one_side() -> None:
    ranges, keys, token_ids = corpus([[1, 2, 3, 4] * 10 + [5, 6, 7, 8] * 3])
    train, held_out = split(ranges, keys, token_ids, target_tokens=12, block_size=4)
    assert texts(held_out, token_ids) == [(5, 6, 7, 8) * 3]
    assert train.num_tokens == 40


def test_a_corpus_of_one_content_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"both sides have text of their own.*held_out_sources"):
        split(*corpus([[1] * 100]), target_tokens=40, block_size=10)
