"""Preparing: once only, whole or not at all, and nothing held out that is trained on."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.data import NO_LABEL, DataSpec, PackedDataset, Prepared, Progress, prepare
from stillhouse.data import cache as cache_module
from stillhouse.data import preparation as preparation_module
from stillhouse.data.cache import Cache
from stillhouse.data.dataset import open_prepared
from stillhouse.data.tokenize import DocumentTokenizer
from stillhouse.data.writer import CorpusWriter
from stillhouse.errors import DataError
from stillhouse.fingerprint import tokens_fingerprint
from stillhouse.vocabulary import tokenizer_tokens


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places of all documents that were tokenised."""
    places: list[str] = []
    encode = DocumentTokenizer.encode

    def counting(self: DocumentTokenizer, items: Any) -> Any:
        for encoded in encode(self, items):
            places.append(str(encoded.place))
            yield encoded

    monkeypatch.setattr(DocumentTokenizer, "encode", counting)
    return places


def corpus(path: Path, number: int = 40, start: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"text": f"the mash is {n} in the still"}) + "\n" for n in range(start, start + number))
    )
    return path


def prepared(path: Path | str, tokenizer: Any, cache: Path, **settings: Any) -> Prepared:
    return prepare(DataSpec(sources=(str(path),), **{"block_size": 16, **settings}), tokenizer, cache)


def documents(dataset: PackedDataset, tokenizer: Any) -> list[str]:
    ids = np.concatenate([sample.token_ids for sample in dataset])
    return str(tokenizer.decode(ids.tolist())).split("<|endoftext|>")[:-1]


def test_every_document_comes_back_in_order_with_its_labels(tmp_path: Path, tokenizer: Any) -> None:
    train = prepared(corpus(tmp_path / "a.jsonl"), tokenizer, tmp_path / "cache").train
    assert documents(train, tokenizer) == [f"the mash is {n} in the still" for n in range(40)]
    for sample in train:
        edges = np.cumsum(sample.segment_lengths)
        assert edges[-1] == len(sample.token_ids)
        ended = sample.token_ids == tokenizer.eos_token_id
        assert ((sample.labels == NO_LABEL) == ended).all()
        assert (sample.labels[:-1][~ended[:-1]] == sample.token_ids[1:][~ended[:-1]]).all()
        assert (sample.mask == ~ended).all()
    assert train.tokenizer_fingerprint == tokens_fingerprint(tokenizer_tokens(tokenizer))
    assert (train.block_size, train.vocabulary_size) == (16, len(tokenizer_tokens(tokenizer)))


def test_a_restart_tokenises_nothing(tmp_path: Path, tokenizer: Any, tokenised: list[str]) -> None:
    path = corpus(tmp_path / "a.jsonl")
    first = prepared(path, tokenizer, tmp_path / "cache")
    assert len(tokenised) == 40
    second = prepared(path, tokenizer, tmp_path / "cache")
    assert len(tokenised) == 40
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.train.fingerprint == second.train.fingerprint


def test_a_restart_reads_no_file_that_has_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SETTLED_NANOSECONDS", -1)
    path = corpus(tmp_path / "a.jsonl")
    cache = Cache(tmp_path / "cache")
    digest = cache.file_digest(path)
    (remembered,) = (tmp_path / "cache" / "digests").iterdir()
    assert remembered.read_text() == digest
    remembered.write_text("as remembered")
    assert cache.file_digest(path) == "as remembered"
    with path.open("a") as file:
        file.write("more")
    assert cache.file_digest(path) not in (digest, "as remembered")


def test_a_file_that_changed_just_now_is_not_trusted_to_stay(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.file_digest(corpus(tmp_path / "a.jsonl"))
    assert not list((tmp_path / "cache" / "digests").iterdir())


def test_a_changed_file_tokenizer_setting_or_template_is_prepared_anew(
    tmp_path: Path, tokenizer: Any, tokenised: list[str]
) -> None:
    path = corpus(tmp_path / "a.jsonl", number=3)
    seen = [prepared(path, tokenizer, tmp_path / "cache").folder]
    path.write_text(path.read_text().replace("mash", "wash"))
    seen.append(prepared(path, tokenizer, tmp_path / "cache").folder)
    seen.append(prepared(path, tokenizer, tmp_path / "cache", append_eos=False).folder)
    seen.append(prepared(path, tokenizer, tmp_path / "cache", block_size=8).folder)
    template = tmp_path / "chat.jinja"
    template.write_text("x")
    seen.append(prepared(path, tokenizer, tmp_path / "cache", chat_template=template).folder)
    assert len(set(seen)) == 5
    assert len(tokenised) == 15


def test_equal_content_has_one_fingerprint_wherever_it_lies(tmp_path: Path, tokenizer: Any) -> None:
    here = prepared(corpus(tmp_path / "here" / "a.jsonl"), tokenizer, tmp_path / "cache")
    there = prepared(corpus(tmp_path / "there" / "b.ndjson"), tokenizer, tmp_path / "other")
    assert here.train.fingerprint == there.train.fingerprint
    other = prepared(corpus(tmp_path / "there" / "c.jsonl", start=1), tokenizer, tmp_path / "other")
    assert other.train.fingerprint != here.train.fingerprint
    coarser = prepared(tmp_path / "there" / "b.ndjson", tokenizer, tmp_path / "other", block_size=32)
    assert coarser.train.fingerprint != here.train.fingerprint


def test_processes_that_prepare_at_once_do_the_work_once(tmp_path: Path, tokenizer: Any, tokenised: list[str]) -> None:
    path = corpus(tmp_path / "a.jsonl")
    barrier = threading.Barrier(4)

    def work(_: int) -> str:
        barrier.wait(timeout=30)
        return prepared(path, tokenizer, tmp_path / "cache").train.fingerprint

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(work, range(4)))) == 1
    assert len(tokenised) == 40
    assert not list((tmp_path / "cache").glob("*.partial-*"))


def test_a_lock_that_is_never_let_go_costs_time_and_nothing_else(tmp_path: Path) -> None:
    cache = Cache(tmp_path, lock_wait_seconds=0.05)
    inside = threading.Event()
    release = threading.Event()

    def slow(folder: Path) -> None:
        inside.set()
        assert release.wait(timeout=30)
        (folder / "x").write_text("slow")

    def quick(folder: Path) -> None:
        (folder / "x").write_text("quick")

    def load(folder: Path) -> str | None:
        return (folder / "x").read_text() if (folder / "x").exists() else None

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get_or_make, "key", load, slow)
        assert inside.wait(timeout=30)
        assert cache.get_or_make("key", load, quick) == ("quick", False)
        release.set()
        assert first.result(timeout=30) == ("quick", False)
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_failure_leaves_nothing_behind_and_a_killed_process_little(tmp_path: Path, tokenizer: Any) -> None:
    path = corpus(tmp_path / "a.jsonl")
    with path.open("a") as file:
        file.write("{bad\n")
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match="line 41"):
        prepared(path, tokenizer, cache)
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == ["digests"]
    corpus(path)
    done = prepared(path, tokenizer, cache)
    leftover = cache / f"{done.folder.name}.partial-0"
    done.folder.rename(leftover)
    prepared(path, tokenizer, cache)
    assert not leftover.exists()


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest", "version"])
def test_a_damaged_corpus_in_the_cache_is_prepared_anew(
    tmp_path: Path, tokenizer: Any, tokenised: list[str], damage: str
) -> None:
    path = corpus(tmp_path / "a.jsonl")
    done = prepared(path, tokenizer, tmp_path / "cache")
    ids, manifest = done.folder / "token_ids.u32", done.folder / "manifest.json"
    match damage:
        case "truncate":
            ids.write_bytes(ids.read_bytes()[:-4])
        case "remove":
            ids.unlink()
        case "manifest":
            manifest.write_text("{")
        case "version":
            manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 999'))
    assert open_prepared(done.folder) is None
    again = prepared(path, tokenizer, tmp_path / "cache")
    assert len(tokenised) == 80
    assert len(documents(again.train, tokenizer)) == 40


@pytest.mark.parametrize(("settings", "tokens"), [({"held_out_fraction": 0.25}, 0), ({"held_out_samples": 3}, 48)])
def test_held_out_documents_are_not_trained_on(
    tmp_path: Path, tokenizer: Any, settings: dict[str, Any], tokens: int
) -> None:
    done = prepared(corpus(tmp_path / "a.jsonl"), tokenizer, tmp_path / "cache", **settings)
    assert done.held_out is not None
    train, held_out = documents(done.train, tokenizer), documents(done.held_out, tokenizer)
    assert len(train) + len(held_out) == 40
    assert not set(train) & set(held_out)
    target = tokens or 0.25 * (done.train.part.num_tokens + done.held_out.part.num_tokens)
    assert target / 2 < done.held_out.part.num_tokens <= target


def test_one_long_document_is_held_out_by_blocks(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" ".join(str(number) for number in range(2000)))
    done = prepared(path, tokenizer, tmp_path / "cache", held_out_samples=4)
    assert done.held_out is not None
    assert len(done.held_out) == 4
    ids = [np.concatenate([sample.token_ids for sample in part]) for part in (done.train, done.held_out)]
    assert sum(map(len, ids)) == done.folder.joinpath("token_ids.u32").stat().st_size // 4


def test_held_out_sources_are_a_part_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    mine, theirs = corpus(tmp_path / "a.jsonl"), corpus(tmp_path / "b.jsonl", number=5, start=100)
    done = prepared(mine, tokenizer, tmp_path / "cache", held_out_sources=(str(theirs),))
    assert done.held_out is not None
    assert len(documents(done.train, tokenizer)) == 40
    assert documents(done.held_out, tokenizer) == [f"the mash is {n} in the still" for n in range(100, 105)]


def test_held_out_sources_that_are_trained_on_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    mine, theirs = corpus(tmp_path / "a.jsonl"), corpus(tmp_path / "b.jsonl", number=5)
    with pytest.raises(DataError, match=r"share all of their 5 document\(s\) with the training part.*must not be"):
        prepared(mine, tokenizer, tmp_path / "cache", held_out_sources=(str(theirs),))


def test_a_held_out_document_that_is_trained_on_is_dropped_wherever_packing_puts_it(
    tmp_path: Path, tokenizer: Any
) -> None:
    mine = corpus(tmp_path / "a.jsonl")
    theirs = corpus(tmp_path / "b.jsonl", number=5, start=37)  # three of them are among the forty
    done = prepared(mine, tokenizer, tmp_path / "cache", held_out_sources=(str(theirs),))
    assert done.held_out is not None
    assert len(documents(done.train, tokenizer)) == 40
    assert documents(done.held_out, tokenizer) == [f"the mash is {n} in the still" for n in (40, 41)]


def test_held_out_samples_that_also_stand_in_training_are_left_out(tmp_path: Path, tokenizer: Any) -> None:
    # Documents of different content that all begin with the same blocks.
    head = "the mash is in the still and hello there " * 8
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{head}{n:04}"}) + "\n" for n in range(64)))
    done = prepared(path, tokenizer, tmp_path / "cache", held_out_fraction=0.3, block_size=4)
    assert done.held_out is not None
    assert done.held_out.part.skipped_samples > 0
    train = {sample.token_ids.tobytes() for sample in done.train}
    assert not train & {sample.token_ids.tobytes() for sample in done.held_out}


def test_blocks_and_documents_with_nothing_to_learn_are_left_out_and_counted(
    tmp_path: Path, tokenizer: Any, chat: list[dict[str, str]]
) -> None:
    long_prompt = [{"role": "user", "content": "hello there " * 50}, {"role": "assistant", "content": "still"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (chat, chat[:1], long_prompt)))
    done = prepared(path, tokenizer, tmp_path / "cache")
    assert done.manifest.skipped_documents == 1
    assert done.train.part.num_documents == 2
    assert done.train.part.skipped_samples > 0
    assert all(sample.mask.any() for sample in done.train)
    learnt = "".join(tokenizer.decode(sample.labels[sample.mask].tolist()) for sample in done.train)
    assert learnt == "the mash<|im_end|>is in the still<|im_end|>still<|im_end|>"


def test_shards_need_no_tokenizer(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(3):
        (shards / f"{number}.bin").write_bytes(np.arange(number * 10, number * 10 + 10, dtype="<u4").tobytes())
    done = prepare(DataSpec(sources=(str(shards),), block_size=8), None, tmp_path / "cache")
    assert np.concatenate([sample.token_ids for sample in done.train]).tolist() == list(range(30))
    assert [sample.segment_lengths for sample in done.train] == [(8,), (2, 6), (4, 4), (6,)]
    assert (done.manifest.max_token_id, done.manifest.vocabulary_size) == (29, 30)
    assert done.train.tokenizer_fingerprint == ""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(" \n ", r"a\.txt holds no text"), ("", r"a\.txt is empty")],
)
def test_a_corpus_with_nothing_in_it_is_refused(tmp_path: Path, tokenizer: Any, content: str, complaint: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=complaint):
        prepared(tmp_path / "a.txt", tokenizer, tmp_path / "cache")


def test_a_corpus_of_less_than_one_prediction_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="train part has no position to learn from: 1 token"):
        prepared(tmp_path / "a.txt", tokenizer, tmp_path / "cache", append_eos=False)


def test_conversations_in_which_nobody_answers_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}))
    with pytest.raises(DataError, match="nothing to learn from"):
        prepared(tmp_path / "a.jsonl", tokenizer, tmp_path / "cache")


def test_settings_of_files_that_are_not_there_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    path = corpus(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"boundary_token_id has no effect: there are no \.bin shards"):
        prepared(path, tokenizer, tmp_path / "cache", boundary_token_id=3)
    with pytest.raises(DataError, match="text_separator has no effect"):
        prepared(path, tokenizer, tmp_path / "cache", text_separator="\n")


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the cache folder .*file.* cannot be written: .*name another"):
        prepared(corpus(tmp_path / "a.jsonl"), tokenizer, tmp_path / "file" / "cache")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullWriter(CorpusWriter):
        def __init__(self, folder: Path) -> None:
            (folder / "token_ids.u32").symlink_to("/dev/full")
            super().__init__(folder)

    monkeypatch.setattr(preparation_module, "CorpusWriter", FullWriter)
    with pytest.raises(DataError, match=r"cannot be written: No space left on device; free some space or name another"):
        prepared(corpus(tmp_path / "a.jsonl"), tokenizer, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.partial-*"))


def test_progress_tells_of_every_document(tmp_path: Path, tokenizer: Any) -> None:
    told: list[Progress] = []
    spec = DataSpec(sources=(str(corpus(tmp_path / "a.jsonl")),), block_size=16)
    done = prepare(spec, tokenizer, tmp_path / "cache", told.append)
    assert [progress.documents for progress in told] == list(range(1, 41))
    assert told[-1].tokens == done.train.part.num_tokens
    prepare(spec, tokenizer, tmp_path / "cache", lambda _: pytest.fail("nothing was to be tokenised"))


def test_samples_are_counted_as_a_sequence_is(tmp_path: Path, tokenizer: Any) -> None:
    train = prepared(corpus(tmp_path / "a.jsonl"), tokenizer, tmp_path / "cache").train
    assert train[-1].token_ids.tolist() == train[len(train) - 1].token_ids.tolist()
    for index in (len(train), -len(train) - 1):
        with pytest.raises(IndexError, match=f"of {len(train)}"):
            train[index]


def test_every_sample_has_the_blocks_length_but_the_last(tmp_path: Path) -> None:
    np.arange(1, 24, dtype="<u4").tofile(tmp_path / "x.bin")
    spec = DataSpec(sources=(str(tmp_path / "x.bin"),), block_size=5, boundary_token_id=7)
    data = prepare(spec, None, tmp_path / "cache").train
    assert data.sample_lengths().tolist() == [len(sample.token_ids) for sample in data] == [5, 5, 5, 5, 3]
