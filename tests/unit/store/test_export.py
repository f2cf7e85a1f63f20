"""What is exported is what `datasets` opens, with the same values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.data import DataSpec, Prepared
from stillhouse.encodings import Encoding, Hidden, Sampled, TopK
from stillhouse.errors import StoreError
from stillhouse.store import open_store
from stillhouse.store.export import export
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import VOCABULARY, make_store

datasets = pytest.importorskip("datasets")

Corpus = tuple[Prepared, DataSpec]


@pytest.mark.parametrize("encoding", [Sampled(8), TopK(4), Hidden("bfloat16")], ids=repr)
def test_load_from_disk_gives_the_stored_values(corpus: Corpus, tmp_path: Path, encoding: Encoding) -> None:
    make_store(tmp_path / "store", corpus, encoding, teacher=RandomTeacher(VOCABULARY))
    export(tmp_path / "store", tmp_path / "out")
    opened = datasets.load_from_disk(str(tmp_path / "out"))
    store = open_store(tmp_path / "store")
    assert {name: len(split) for name, split in opened.items()} == {"train": 33, "held_out": 5}
    for row, stored in zip(opened["train"], store, strict=True):
        assert row["token_ids"] == stored.token_ids.tolist()
        assert row["labels"] == stored.labels.tolist()
        assert (row["mask"] or [True] * len(row["labels"])) == stored.mask.tolist()
        payload = stored.payload
        if isinstance(encoding, Sampled):
            ids = [one for ids in row["ids"] for one in ids]
            assert ids == payload.token_ids.tolist()  # type: ignore[union-attr]
            assert [sum(counts) for counts in row["counts"]] == [8] * payload.num_positions
        elif isinstance(encoding, TopK):
            assert np.allclose(row["logits"], payload.logits.numpy())  # type: ignore[union-attr]
        else:
            assert torch.equal(torch.tensor(row["hidden"]), payload.hidden.float())  # type: ignore[union-attr]


def test_a_store_is_a_dataset_of_parquet_as_it_stands(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "store", corpus)
    files = str(tmp_path / "store" / "train" / "*.parquet")
    opened = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert opened["sample_index"][:] == list(range(33))


def test_a_damaged_store_leaves_no_export(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "store", corpus)
    (tmp_path / "store" / "held_out" / "000001.parquet").unlink()
    with pytest.raises(StoreError, match=r"held_out/000001.parquet"):
        export(tmp_path / "store", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_share_without_a_shard_of_some_part_opens_too(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "first", corpus, share=(0, 3))
    export(tmp_path / "first", tmp_path / "out")
    opened = datasets.load_from_disk(str(tmp_path / "out"))
    assert {name: len(split) for name, split in opened.items()} == {"train": 12}
    make_store(tmp_path / "none", corpus, share=(0, 64))
    with pytest.raises(StoreError, match="holds no shard, as there are more shares than shards"):
        export(tmp_path / "none", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
