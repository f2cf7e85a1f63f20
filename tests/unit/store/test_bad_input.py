"""What is no store, or no longer one, is refused by name; what is sound in it stays usable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data import DataSpec, Prepared
from stillhouse.encodings import Hidden
from stillhouse.errors import StoreError
from stillhouse.store import open_store
from stillhouse.store.verify import verify
from tests.unit.store.small_store import make_store

Corpus = tuple[Prepared, DataSpec]


@pytest.fixture(scope="module")
def sound(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "store"
    make_store(folder, corpus)
    return folder


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "store"))


def rewrite(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    place = store / "manifest.json"
    values = json.loads(place.read_bytes())
    change(values)
    place.write_text(json.dumps(values))


def test_no_folder_no_store_and_an_unfinished_one_are_told_apart(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"is no store: it has no manifest.json"):
        open_store(tmp_path)
    (store / "manifest.json").rename(store / "capture.json")
    with pytest.raises(StoreError, match="a capture that is not at its end"):
        open_store(store)


def test_another_format_is_named(store: Path) -> None:
    rewrite(store, lambda values: values["plan"].update(format_version=2, something_new=1))
    with pytest.raises(StoreError, match="is a store of format 2, newer than the 1 that is known here"):
        open_store(store)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "17", '{"plan": 3}', '{"version": 1}', '{"plan": {"format_version": true}}']
)
def test_a_manifest_of_something_else_is_no_store(store: Path, text: str) -> None:
    (store / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"is no JSON|is no store"):
        open_store(store)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "giant counts": lambda m: m["plan"]["train"].update(num_samples=10**30),
    "many samples": lambda m: m["plan"]["train"].update(num_samples=10**12),
    "no samples": lambda m: m["plan"]["train"].update(num_samples=0),
    "negative samples": lambda m: m["plan"]["train"].update(num_samples=-5),
    "giant shard": lambda m: m["shards"]["train"][0].update(samples=10**30),
    "negative bytes": lambda m: m["shards"]["train"][0].update(bytes=-1),
    "too few shards": lambda m: m["shards"]["train"].pop(),
    "no held-out shards": lambda m: m["shards"].pop("held_out"),
    "another part": lambda m: m["shards"].update({"../../etc": []}),
    "a path": lambda m: m["shards"]["train"][0].update(path="/etc/passwd"),
    "zero to a shard": lambda m: m["plan"].update(samples_per_shard=0),
    "zero to a group": lambda m: m["plan"].update(samples_per_group=0),
    "no temperature": lambda m: m["plan"].update(temperature=0),
    "not a temperature": lambda m: m["plan"].update(temperature="nan"),
    "giant vocabulary": lambda m: m["plan"].update(vocabulary_size=10**12),
    "wide vocabulary": lambda m: m["plan"].update(vocabulary_size=51),
    "no encoding": lambda m: m["plan"].update(encoding="pickle"),
    "encoding in part": lambda m: m["plan"].update(encoding="sampled"),
    "giant draws": lambda m: m["plan"].update(encoding="sampled:" + "9" * 5000 + ":0"),
    "share over": lambda m: m.update(share=[3, 2]),
    "share of none": lambda m: m.update(share=[0, 0]),
    "unknown key": lambda m: m.update(more=1),
    "checksum": lambda m: m["shards"]["train"][0].update(checksum="x"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused(store: Path, name: str) -> None:
    rewrite(store, HOSTILE[name])
    with pytest.raises(StoreError, match="contradicts itself"):
        open_store(store)


def test_other_shard_sizes_than_the_files_have_are_found_when_one_is_read(store: Path) -> None:
    rewrite(store, lambda m: m["plan"].update(samples_per_group=3))
    opened = open_store(store)
    with pytest.raises(StoreError, match=r"train/000000.parquet"):
        [opened[index] for index in range(4)]


def _footer(data: bytes) -> int:
    """Where the footer begins, whose length stands before the last four bytes."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"x",
    "other bytes": lambda data: b"x" * len(data),
    "footer": lambda data: data[: (at := _footer(data))] + bytes(32) + data[at + 32 :],
    "page": lambda data: data[:200] + bytes(byte ^ 255 for byte in data[200:260]) + data[260:],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_shard_is_named_and_the_others_stay_usable(store: Path, name: str) -> None:
    place = store / "train" / "000002.parquet"
    data = DAMAGE[name](place.read_bytes())
    place.unlink()
    if data is not None:
        place.write_bytes(data)
    opened = open_store(store)
    with pytest.raises(StoreError, match=r"train/000002.parquet"):
        [opened[index] for index in range(8, 12)]
    assert len([opened[index] for index in range(len(opened)) if index // 4 != 2]) == 29
    found = verify(store)
    assert len(found.faults) == 1
    assert "train/000002.parquet" in found.faults[0]
    assert found.samples == 38 - 4


def test_two_shards_in_each_others_place_are_found(store: Path) -> None:
    one, other = (store / "train" / f"00000{number}.parquet" for number in (3, 4))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    assert len(verify(store).faults) == 2
    # Also where the manifest was made to fit.
    rewrite(store, lambda m: m["shards"]["train"].insert(3, m["shards"]["train"].pop(4)))
    faults = verify(store).faults
    assert ["in the place of" in fault for fault in faults] == [True, True]
    with pytest.raises(StoreError, match=r"train/000003.parquet.* in the place of 12"):
        open_store(store)[12]


def test_every_altered_byte_is_found(store: Path) -> None:
    place = store / "held_out" / "000000.parquet"
    data = place.read_bytes()
    for at in range(0, len(data), 97):
        place.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert len(verify(store).faults) == 1
    place.write_bytes(data)
    assert verify(store).faults == []


def test_a_negative_index_counts_from_the_end_and_there_is_no_sample_beyond(store: Path) -> None:
    opened = open_store(store)
    assert (opened[-1].token_ids == opened[32].token_ids).all()
    for index in (33, -34, 10**12):
        with pytest.raises(IndexError, match=f"sample {index} of 33"):
            opened[index]


def test_tokens_and_head_are_read_with_care(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "store", corpus, Hidden())
    for name, read in (("tokens.parquet", "tokens"), ("output_head.safetensors", "output_head")):
        place = tmp_path / "store" / name
        data = place.read_bytes()
        place.write_bytes(data[:-3])
        assert len(verify(tmp_path / "store").faults) == 1
        with pytest.raises(
            StoreError,
            match=f"{name} has .* bytes, where the manifest says .*: it was cut off or altered; copy it again",
        ):
            getattr(open_store(tmp_path / "store"), read) if read == "tokens" else open_store(
                tmp_path / "store"
            ).output_head()
        place.write_bytes(data)
    assert verify(tmp_path / "store").faults == []


def flip(place: Path, at: int) -> None:
    data = bytearray(place.read_bytes())
    data[at] ^= 1
    place.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["tokens.parquet", "output_head.safetensors"])
@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
def test_one_altered_bit_beside_the_shards_is_never_read_over(
    corpus: Corpus, tmp_path: Path, name: str, at: float
) -> None:
    make_store(tmp_path / "store", corpus, Hidden())
    place = tmp_path / "store" / name
    flip(place, int(at * place.stat().st_size))
    store = open_store(tmp_path / "store")
    with pytest.raises(StoreError, match=f"{name} was altered: its checksum is .*; copy it again"):
        _ = store.tokens if name == "tokens.parquet" else store.output_head()


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("temperature",), 2.0, "temperature is 1.0, and the manifest 2.0"),
        (("encoding",), "sampled:8:4", "encoding is sampled:8:0, and the manifest sampled:8:4"),
        (("teacher", "fingerprint"), "0" * 32, "teacher_fingerprint is .*, and the manifest 0000"),
        (("train", "fingerprint"), "1" * 32, "part_fingerprint is .*, and the manifest 1111"),
    ],
)
def test_a_manifest_that_its_shards_contradict_is_found_and_not_learnt_from(
    store: Path, path: tuple[str, ...], value: object, what: str
) -> None:
    def change(values: dict[str, Any]) -> None:
        inner = values["plan"]
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    rewrite(store, change)
    assert any("it says that its stillhouse." in fault for fault in verify(store).faults)
    with pytest.raises(StoreError, match=what):
        open_store(store)[0]


def test_a_hidden_store_says_that_it_has_a_head_and_others_that_they_have_none(corpus: Corpus, tmp_path: Path) -> None:
    make_store(tmp_path / "store", corpus, Hidden())
    rewrite(tmp_path / "store", lambda values: values.update(output_head=None))
    with pytest.raises(StoreError, match="a store of hidden:bf16 answers lacks an output_head"):
        open_store(tmp_path / "store")


def test_files_that_readers_of_parquet_would_count_too_are_found(store: Path) -> None:
    shutil.copy(store / "train" / "000000.parquet", store / "train" / "000099.parquet")
    shutil.copy(store / "train" / "000000.parquet", store / "tokens.parquet")
    faults = verify(store).faults
    assert any(fault.startswith("train/000099.parquet is no shard of this store: remove it") for fault in faults)


@pytest.mark.parametrize("version", ["2", 2])
def test_a_newer_format_is_named_wherever_it_says_so(store: Path, version: object) -> None:
    rewrite(store, lambda values: values["plan"].update(format_version=version))
    with pytest.raises(StoreError, match="is a store of format 2, newer than"):
        open_store(store)
    (store / "manifest.json").write_text(json.dumps({"format_version": version}))
    with pytest.raises(StoreError, match="is a store of format 2, newer than"):
        open_store(store)


@pytest.mark.parametrize("index", [slice(0, 3), "a", 1.5, None])
def test_what_is_no_index_is_named(store: Path, index: Any) -> None:
    with pytest.raises(TypeError, match="the index of a sample must be an integer; got"):
        open_store(store)[index]
