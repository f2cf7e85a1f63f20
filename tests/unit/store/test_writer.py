"""A capture goes on where it stood, alone, and never into what is not its own."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from stillhouse.asking import Asking
from stillhouse.data import DataSpec, Prepared
from stillhouse.encodings import Hidden, Sampled, TopK
from stillhouse.errors import StoreError
from stillhouse.fixtures import FixtureTeacher
from stillhouse.store import StoreWriter, open_store
from stillhouse.store.journal import Journal
from tests.unit.store.small_store import VOCABULARY, fill, folder_bytes, make_store, plan_of

Corpus = tuple[Prepared, DataSpec]

TEACHER = FixtureTeacher(VOCABULARY)
TOKENS = TEACHER.describe().tokens


@pytest.fixture(scope="module")
def unbroken(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("unbroken") / "store"
    make_store(folder, corpus)
    return folder_bytes(folder)


@pytest.mark.parametrize("before", [0, 1, 3, 4, 5, 32, 33, 37])
def test_a_capture_that_stops_goes_on_and_ends_with_the_same_bytes(
    corpus: Corpus, tmp_path: Path, before: int, unbroken: dict[str, bytes]
) -> None:
    plan, folder = plan_of(corpus), tmp_path / "store"
    with StoreWriter(folder, plan, tokens=TOKENS) as writer:
        assert fill(writer, corpus, TEACHER, most=before) == before
    with StoreWriter(folder, plan, tokens=TOKENS) as writer:
        assert writer.num_done("train") + writer.num_done("held_out") == before
        assert fill(writer, corpus, TEACHER) == 38 - before
        writer.finish()
    assert folder_bytes(folder) == unbroken


def test_the_order_in_which_answers_come_leaves_no_trace(
    corpus: Corpus, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    with StoreWriter(tmp_path / "store", plan_of(corpus), tokens=TOKENS) as writer:
        for name in ("held_out", "train"):
            store = getattr(corpus[0], name)
            for index in reversed(list(writer.missing(name))):
                asking = Asking(Sampled(8), 1.0, VOCABULARY, "")
                writer.add(name, index, store[index], TEACHER.answer(asking.request([store[index]])).payloads[0])
        writer.finish()
    assert folder_bytes(tmp_path / "store") == unbroken


@pytest.mark.parametrize("damage", ["cut", "zeros", "flip"])
def test_a_frame_that_is_not_whole_is_asked_for_again(
    corpus: Corpus, tmp_path: Path, damage: str, unbroken: dict[str, bytes]
) -> None:
    plan, folder = plan_of(corpus), tmp_path / "store"
    with StoreWriter(folder, plan, tokens=TOKENS) as writer:
        fill(writer, corpus, TEACHER, most=7)
    journal = folder / "partial" / "train-000001"
    data = bytearray(journal.read_bytes())
    if damage == "cut":
        del data[-5:]
    elif damage == "zeros":
        data[-40:] = bytes(40)
    else:
        data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    with StoreWriter(folder, plan, tokens=TOKENS) as writer:
        assert writer.num_done("train") < 7
        fill(writer, corpus, TEACHER)
        writer.finish()
    assert folder_bytes(folder) == unbroken


def test_a_shard_of_which_no_line_tells_is_read_over(
    corpus: Corpus, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    plan, folder = plan_of(corpus), tmp_path / "store"
    with StoreWriter(folder, plan, tokens=TOKENS) as writer:
        fill(writer, corpus, TEACHER, most=9)
    ledger = folder / "partial" / "shards"
    ledger.write_bytes(ledger.read_bytes()[:-9])
    with StoreWriter(folder, plan, tokens=TOKENS) as writer:
        assert writer.num_done("train") == 9
        fill(writer, corpus, TEACHER)
        writer.finish()
    assert folder_bytes(folder) == unbroken


def test_a_shard_whose_line_was_lost_and_that_was_altered_is_named(corpus: Corpus, tmp_path: Path) -> None:
    plan, folder = plan_of(corpus), tmp_path / "store"
    with StoreWriter(folder, plan, tokens=TOKENS) as writer:
        fill(writer, corpus, TEACHER, most=9)
    (folder / "partial" / "shards").unlink()
    shard = folder / "train" / "000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"train/000001.parquet is not sound.*remove it"):
        StoreWriter(folder, plan, tokens=TOKENS)


def test_a_second_writer_is_refused_while_the_first_is_there(corpus: Corpus, tmp_path: Path) -> None:
    plan = plan_of(corpus)
    with StoreWriter(tmp_path / "store", plan), pytest.raises(StoreError, match="being filled by another process"):
        StoreWriter(tmp_path / "store", plan)
    StoreWriter(tmp_path / "store", plan).close()


def test_another_plan_is_refused_by_what_differs(corpus: Corpus, tmp_path: Path) -> None:
    StoreWriter(tmp_path / "store", plan_of(corpus)).close()
    with pytest.raises(StoreError, match=r"encoding is 'sampled:8:0', not 'top_k:4:f16'.*temperature is 1.0, not 2.0"):
        StoreWriter(tmp_path / "store", plan_of(corpus, TopK(4), temperature=2.0))
    with pytest.raises(StoreError, match="holds share 0/1, not 1/2"):
        StoreWriter(tmp_path / "store", plan_of(corpus), (1, 2))


def test_a_finished_store_takes_the_same_plan_and_no_other(corpus: Corpus, tmp_path: Path) -> None:
    manifest = make_store(tmp_path / "store", corpus)
    with StoreWriter(tmp_path / "store", plan_of(corpus)) as writer:
        assert writer.is_finished
        assert list(writer.missing("train")) == []
        assert writer.num_done("train") == 33
        assert writer.finish() == manifest
    with pytest.raises(StoreError, match="holds other answers"):
        StoreWriter(tmp_path / "store", plan_of(corpus, Sampled(9)))


def test_a_folder_of_something_else_is_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    before = folder_bytes(tmp_path)
    with pytest.raises(StoreError, match=r"is not empty and no store: it holds thesis.txt"):
        StoreWriter(tmp_path, plan_of(corpus))
    assert folder_bytes(tmp_path) == before


def test_nothing_is_finished_while_a_sample_is_missing(corpus: Corpus, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", plan_of(corpus)) as writer:
        fill(writer, corpus, TEACHER, most=34)
        with pytest.raises(StoreError, match=r"lacks 4 sample\(s\) of held_out, the first of them 1"):
            writer.finish()
    assert not (tmp_path / "store" / "manifest.json").exists()
    with pytest.raises(StoreError, match="a capture that is not at its end"):
        open_store(tmp_path / "store")


def test_an_answer_of_another_kind_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    sample = corpus[0].train[0]
    (payload,) = TEACHER.logits([sample.token_ids.tolist()], encoding=TopK(4))
    (short,) = TEACHER.logits([sample.token_ids.tolist()[:5]], encoding=Sampled(8))
    with StoreWriter(tmp_path / "store", plan_of(corpus)) as writer:
        with pytest.raises(StoreError, match=r"should be .*SAMPLED.*got .*TOP_K"):
            writer.add("train", 0, sample, payload)
        with pytest.raises(StoreError, match=r"rows=16.*rows=5"):
            writer.add("train", 0, sample, short)
        with pytest.raises(StoreError, match="none of share"):
            writer.add("train", 99, sample, payload)


def test_hidden_answers_need_their_head_and_others_none(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="lacks an output_head"):
        StoreWriter(tmp_path / "store", plan_of(corpus, Hidden()))
    with pytest.raises(StoreError, match="has no use for an output_head"):
        StoreWriter(tmp_path / "store", plan_of(corpus), output_head=TEACHER.output_head())


def test_a_full_disk_is_named_and_loses_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, bytes]
) -> None:
    plan, folder = plan_of(corpus), tmp_path / "store"
    real = Journal.add

    def full(journal: Journal, index: int, *arguments: Any) -> None:
        if index == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(journal, index, *arguments)

    with StoreWriter(folder, plan, tokens=TOKENS) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", full)
            with pytest.raises(StoreError, match=r"No space left on device; free some space and start again"):
                fill(writer, corpus, TEACHER)
        assert writer.num_done("train") == 6
        fill(writer, corpus, TEACHER)
        writer.finish()
    assert folder_bytes(folder) == unbroken


def test_shares_hold_every_sample_once(corpus: Corpus) -> None:
    plan = plan_of(corpus)
    for count in (1, 2, 3, 5, 9, 20):
        for name in plan.parts:
            shards = [shard for index in range(count) for shard in plan.shards_of(name, (index, count))]
            assert shards == list(range(plan.num_shards(name)))


def test_a_place_that_cannot_be_written_is_named(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/store cannot be written: Not a directory; make it writable, or name"):
        StoreWriter(tmp_path / "file" / "store", plan_of(corpus))
