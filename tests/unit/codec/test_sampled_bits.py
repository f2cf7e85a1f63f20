"""Ids and counts survive their bits, however far apart the ids are, and never take more bits than the header allows."""

from __future__ import annotations

import tracemalloc
from itertools import accumulate, combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse import codec
from stillhouse.codec import decode_payload, decode_payloads, encode_payload, header_of
from stillhouse.errors import CodecError
from stillhouse.payloads import DenseLogits, HiddenStates, Payload, SampledCounts
from stillhouse.sampled_bits import pack_ids, unpack_ids, unpack_many

LARGEST_ID = 2**31 - 1

rows_of_ids = st.lists(
    st.sets(st.integers(0, LARGEST_ID) | st.integers(0, 300), min_size=1, max_size=20).map(sorted), max_size=8
)


@settings(deadline=None)
@given(rows_of_ids)
def test_ids_of_any_distance_survive(rows: list[list[int]]) -> None:
    offsets = np.array([0, *accumulate(map(len, rows))])
    ids = np.array([id_ for row in rows for id_ in row], dtype=np.int64)
    data = pack_ids(ids, offsets, LARGEST_ID + 1)
    assert unpack_ids(data, offsets, LARGEST_ID + 1).tolist() == ids.tolist()


@settings(deadline=None)
@given(st.lists(rows_of_ids, min_size=1, max_size=6))
def test_several_answers_read_together_are_what_each_is_alone(answers: list[list[list[int]]]) -> None:
    width = LARGEST_ID + 1
    offsets = [np.array([0, *accumulate(map(len, rows))]) for rows in answers]
    ids = [np.array([id_ for row in rows for id_ in row], dtype=np.int64) for rows in answers]
    datas = [pack_ids(one, ends, width) for one, ends in zip(ids, offsets, strict=True)]
    found = unpack_many(datas, offsets, width)
    assert list(map(np.ndarray.tolist, found)) == list(map(np.ndarray.tolist, ids))


@given(answer=st.integers(0, 2), how=st.sampled_from(["cut", "longer", "stray"]))
def test_one_damaged_answer_among_others_is_found(answer: int, how: str) -> None:
    width, offsets = 1000, np.array([0, 3, 5])
    ids = [np.array(row) for row in ([3, 50, 900, 7, 8], [0, 1, 2, 998, 999], [100, 200, 300, 400, 500])]
    datas = [pack_ids(one, offsets, width) for one in ids]
    assert list(map(np.ndarray.tolist, unpack_many(datas, [offsets] * 3, width))) == list(map(np.ndarray.tolist, ids))
    damaged = datas[answer]
    if how == "cut":
        damaged = damaged[:-1]
    elif how == "longer":
        damaged = np.concatenate([damaged, np.zeros(1, dtype=np.uint8)])
    else:
        damaged = damaged | np.array([0] * (len(damaged) - 1) + [1], dtype=np.uint8)
    datas[answer] = damaged
    with pytest.raises(CodecError, match="coded"):
        unpack_many(datas, [offsets] * 3, width)


@pytest.mark.parametrize("others", [[], [DenseLogits(torch.ones(2, 300))], [HiddenStates(torch.ones(1, 8))]])
def test_payloads_read_together_are_what_each_is_alone(others: list[Payload], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_ROWS_AT_ONCE", 3)
    rows = torch.tensor([0, 2, 3, 5])
    counts = torch.tensor([1, 3, 4, 2, 2], dtype=torch.int32)
    sampled = [
        SampledCounts(rows, torch.tensor([first, 250, 7, 8, 9]).int(), counts, torch.ones(3), 4, temperature, 300)
        for first, temperature in ((0, 1.0), (3, 2.0), (249, 1.0))
    ]
    datas = list(map(encode_payload, [*sampled, *others]))
    assert [encode_payload(payload) for payload in decode_payloads(datas)] == datas
    assert decode_payloads([]) == []


@pytest.mark.parametrize(
    "row", [[0], [LARGEST_ID], [0, LARGEST_ID], [LARGEST_ID - 1, LARGEST_ID], list(range(500))], ids=lambda row: row[:2]
)
def test_ids_at_the_ends_and_side_by_side_survive(row: list[int]) -> None:
    for width in (row[-1] + 1, LARGEST_ID + 1):
        data = pack_ids(np.array(row), np.array([0, len(row)]), width)
        assert unpack_ids(data, np.array([0, len(row)]), width).tolist() == row


def test_a_row_of_all_ids_takes_no_bits() -> None:
    assert len(pack_ids(np.arange(800), np.array([0, 800]), 800)) == 0


@given(st.integers(1, 9), st.integers(1, 4))
def test_every_row_there_can_be_has_bits_of_its_own(width: int, count: int) -> None:
    offsets = np.array([0, min(count, width)])
    rows = list(combinations(range(width), min(count, width)))
    coded = {pack_ids(np.array(row), offsets, width).tobytes() for row in rows}
    assert len(coded) == len(rows)


@settings(deadline=None)
@given(st.integers(1, 70) | st.just(2**31), st.integers(1, 30), st.integers(0, 2**32), st.integers(0, 5))
def test_no_draws_take_more_bytes_than_their_header_allows(width: int, draws: int, seed: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # As chance has it, or as far apart as may be.
    found = []
    for row in range(rows):
        drawn = torch.randint(0, width, (draws,), generator=generator)
        if row % 2:
            drawn = torch.linspace(0, width - 1, draws, dtype=torch.float64).long()
        found.append(torch.unique(drawn, return_counts=True))
    empty = torch.empty(0, dtype=torch.int32)
    payload = SampledCounts(
        torch.tensor([0, *accumulate(len(ids) for ids, _ in found)]),
        torch.cat([empty, *(ids.int() for ids, _ in found)]),
        torch.cat([empty, *(counts.int() for _, counts in found)]),
        torch.zeros(rows),
        draws,
        1.0,
        width,
    )
    data = encode_payload(payload)
    least, most = header_of(payload).size_bounds()
    assert least <= len(data) <= most
    decoded = decode_payload(data)
    assert isinstance(decoded, SampledCounts)
    assert decoded.token_ids.equal(payload.token_ids)
    assert decoded.counts.equal(payload.counts)


def test_many_ids_take_little_memory_beside_themselves() -> None:
    """The bits of a large answer, each as a number of its own, would be larger than all logits that it stands for."""
    rows, width, count = 64, 2**22, 2**11
    ids = np.tile(np.arange(7, width, width // count), rows)
    offsets = np.arange(rows + 1) * count
    tracemalloc.start()
    try:
        packed = pack_ids(ids, offsets, width)
        _, packing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        unpack_ids(packed, offsets, width)
        _, unpacking = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert packing < 150 * len(ids)
    assert unpacking < 150 * len(ids)
