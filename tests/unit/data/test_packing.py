"""Packing: no token lost or doubled, and every label the next token of its own document."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.data.packing import NO_LABEL, Packing, Sample, read_sample

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
BLOCK = st.integers(2, 17)


def pack(lengths: list[int], block_size: int, *, gap: int = 0) -> tuple[np.ndarray, np.ndarray, list[Sample]]:
    """Documents whose tokens are all different, `gap` foreign tokens between them; every third token is not learnt."""
    edges = np.cumsum([0, *lengths])
    starts = edges[:-1] + gap * np.arange(len(lengths))
    token_ids = np.arange(1000, 1000 + edges[-1] + gap * len(lengths), dtype=np.uint32)
    learnt = token_ids % 3 != 0
    packing = Packing(starts, edges, block_size)
    return starts, learnt, [read_sample(token_ids, learnt, packing.segments(b)) for b in range(packing.num_blocks)]


@settings(deadline=None)
@given(LENGTHS, BLOCK, st.integers(0, 2))
def test_every_token_of_every_document_comes_once_and_in_order(lengths: list[int], block_size: int, gap: int) -> None:
    starts, _, samples = pack(lengths, block_size, gap=gap)
    expected = [1000 + start + i for start, length in zip(starts, lengths, strict=True) for i in range(length)]
    assert np.concatenate([sample.token_ids for sample in samples]).tolist() == expected


@settings(deadline=None)
@given(LENGTHS, BLOCK)
def test_every_label_is_the_next_token_of_the_same_document(lengths: list[int], block_size: int) -> None:
    _, learnt, samples = pack(lengths, block_size)
    last_tokens = set((np.cumsum(lengths) - 1 + 1000).tolist())
    for sample in samples:
        for token, label, counts in zip(sample.token_ids, sample.labels, sample.mask, strict=True):
            if int(token) in last_tokens:
                assert label == NO_LABEL
                assert not counts
            else:
                assert label == token + 1
                assert counts == learnt[token + 1 - 1000]


@settings(deadline=None)
@given(LENGTHS, BLOCK)
def test_segments_add_up_and_only_the_last_block_is_short(lengths: list[int], block_size: int) -> None:
    _, _, samples = pack(lengths, block_size)
    assert all(sum(sample.segment_lengths) == len(sample.token_ids) for sample in samples)
    assert all(min(sample.segment_lengths) >= 1 for sample in samples)
    assert all(len(sample.token_ids) == block_size for sample in samples[:-1])
    assert 1 <= len(samples[-1].token_ids) <= block_size
    boundaries = {sum(lengths[:n]) for n in range(1, len(lengths) + 1)}
    found = set()
    at = 0
    for sample in samples:
        for length in sample.segment_lengths:
            at += length
            if at % block_size:
                found.add(at)
    assert found | {edge for edge in boundaries if edge % block_size == 0} == boundaries


def test_the_label_at_a_blocks_end_comes_from_the_next_block() -> None:
    _, _, samples = pack([6], 4)
    assert samples[0].labels.tolist() == [1001, 1002, 1003, 1004]
    assert samples[1].labels.tolist() == [1005, NO_LABEL]
    assert samples[0].segment_lengths == (4,)


def test_without_a_mask_all_labelled_positions_count() -> None:
    token_ids = np.arange(5, dtype=np.uint32)
    sample = read_sample(token_ids, None, Packing(np.array([0, 3]), np.array([0, 3, 5]), 8).segments(0))
    assert sample.mask.tolist() == [True, True, False, True, False]
    assert sample.labels.tolist() == [1, 2, NO_LABEL, 4, NO_LABEL]
    assert sample.segment_lengths == (3, 2)
    assert [str(array.dtype) for array in (sample.token_ids, sample.labels, sample.mask)] == ["uint32", "int64", "bool"]


def test_a_block_that_is_not_there_is_an_index_error() -> None:
    packing = Packing(np.array([0]), np.array([0, 3]), 2)
    for block in (-1, 2):
        with pytest.raises(IndexError, match="of 2"):
            packing.segments(block)
