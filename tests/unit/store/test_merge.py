"""Shares join to what one capture would have written, and only where they fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.data import DataSpec, Prepared
from stillhouse.encodings import Hidden, Sampled
from stillhouse.errors import StoreError
from stillhouse.store import open_store
from stillhouse.store.merge import merge
from stillhouse.store.verify import verify
from tests.unit.store.small_store import folder_bytes, make_store

Corpus = tuple[Prepared, DataSpec]


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("encoding", [Sampled(8), Hidden()], ids=repr)
def test_merged_shares_are_an_unsplit_store(
    corpus: Corpus, tmp_path: Path, count: int, encoding: Sampled | Hidden
) -> None:
    make_store(tmp_path / "whole", corpus, encoding)
    shares = [tmp_path / f"share{index}" for index in range(count)]
    for index, share in enumerate(shares):
        make_store(share, corpus, encoding, share=(index, count))
        assert verify(share).faults == []
    merge(shares[::-1], tmp_path / "merged")
    assert folder_bytes(tmp_path / "merged") == folder_bytes(tmp_path / "whole")


def test_a_share_opens_only_where_that_is_asked_for(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "share", corpus, share=(1, 3))
    with pytest.raises(StoreError, match=r"holds share 1/3 .*stillhouse store merge"):
        open_store(tmp_path / "share")
    store = open_store(tmp_path / "share", allow_partial=True)
    held = [index for index in range(len(store)) if store.train.has(index)]
    assert held == list(range(12, 24))
    assert len(list(store)) == store.train.num_held == 12
    with pytest.raises(StoreError, match="holds share 1/3, without sample 3 of train"):
        store[3]


def test_what_does_not_fit_is_named_and_nothing_is_left(corpus: Corpus, tmp_path: Path) -> None:
    for index in range(3):
        make_store(tmp_path / f"s{index}", corpus, share=(index, 3))
    make_store(tmp_path / "other", corpus, Sampled(9), share=(2, 3))
    make_store(tmp_path / "half", corpus, share=(1, 2))
    s0, s1, s2 = (tmp_path / f"s{index}" for index in range(3))
    cases = {
        r"share\(s\) 1/3 are missing: name the folders of all 3": [s0, s2],
        r"s1 and \S*s1 both hold share 1/3": [s0, s1, s1, s2],
        r"other and \S*s0 are of two captures: in the first encoding is 'sampled:9:0', not 'sampled:8:0'": [
            s0,
            s1,
            tmp_path / "other",
        ],
        r"half holds share 1/2, and \S*s0 share 0/3: they are cut differently": [s0, tmp_path / "half", s2],
        "there is nothing to merge": [],
        "no such folder": [s0, s1, tmp_path / "nowhere"],
    }
    for message, shares in cases.items():
        with pytest.raises(StoreError, match=message):
            merge(shares, tmp_path / "out")
    (s1 / "train" / "000004.parquet").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"s1: train/000004.parquet is not what its manifest says"):
        merge([s0, s1, s2], tmp_path / "out")
    (s1 / "train" / "000004.parquet").unlink()
    with pytest.raises(StoreError, match=r"s1: train/000004.parquet is missing"):
        merge([s0, s1, s2], tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_holds_something_is_not_merged_into(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "share", corpus)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(StoreError, match="is there already, and is not empty"):
        merge([tmp_path / "share"], tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "kept"
