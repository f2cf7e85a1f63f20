"""Derived answers are those that the teacher would have given."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.data import DataSpec, Prepared
from stillhouse.encodings import Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import StoreError
from stillhouse.store import open_store
from stillhouse.store.derive import derive
from stillhouse.store.verify import verify
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import VOCABULARY, folder_bytes, make_store

Corpus = tuple[Prepared, DataSpec]

TEACHER = RandomTeacher(VOCABULARY)


@pytest.mark.parametrize("source", [Dense("float32"), Hidden("float32")], ids=repr)
@pytest.mark.parametrize("wanted", [Sampled(8, 3), TopK(4), TopK(50, "float32")], ids=repr)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_derived_shards_are_the_teachers_own_to_the_byte(
    corpus: Corpus, tmp_path: Path, source: Encoding, wanted: Encoding, temperature: float
) -> None:
    make_store(tmp_path / "source", corpus, source, teacher=TEACHER)
    make_store(tmp_path / "asked", corpus, wanted, teacher=TEACHER, temperature=temperature)
    derive(tmp_path / "source", tmp_path / "derived", wanted, temperature=temperature, samples_per_shard=4)
    asked, derived = (folder_bytes(tmp_path / name) for name in ("asked", "derived"))
    assert derived.pop("manifest.json") != asked.pop("manifest.json")
    assert derived == asked
    assert verify(tmp_path / "derived", teacher=TEACHER).reasked == 32
    assert verify(tmp_path / "derived", teacher=TEACHER).faults == []


def test_a_derived_store_says_what_it_was_made_from(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "source", corpus, Hidden("bfloat16"), teacher=TEACHER)
    manifest = derive(tmp_path / "source", tmp_path / "derived", TopK(4))
    assert manifest.plan.derived_from == "hidden:bf16"
    assert open_store(tmp_path / "derived").output_head() is None
    with pytest.raises(StoreError, match="derived from hidden:bf16 answers, whose rounding stands in it"):
        verify(tmp_path / "derived", teacher=TEACHER)


def test_what_holds_not_all_logits_is_no_source(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "source", corpus, TopK(4))
    with pytest.raises(StoreError, match=r"holds top_k:4:f16 answers, which are but a part of the logits"):
        derive(tmp_path / "source", tmp_path / "derived", Sampled(4))
    make_store(tmp_path / "dense", corpus, Dense())
    with pytest.raises(StoreError, match=r"sampled and top_k answers can be derived; got hidden:bf16"):
        derive(tmp_path / "dense", tmp_path / "derived", Hidden())
    (tmp_path / "dense" / "held_out" / "000001.parquet").unlink()
    with pytest.raises(StoreError, match=r"held_out/000001.parquet"):
        derive(tmp_path / "dense", tmp_path / "derived", TopK(4))
    assert not list(tmp_path.glob("derived*"))
