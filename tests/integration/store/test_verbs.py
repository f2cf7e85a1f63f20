"""`stillhouse store`: what each verb prints, and with which code it ends."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from stillhouse.cli.main import build_app, run
from stillhouse.encodings import Dense, Hidden, TopK
from stillhouse.store import open_store
from tests.integration.cache.valkey_process import ValkeyProcess
from tests.integration.conftest import ServeTeacher
from tests.integration.store.test_load import capture
from tests.unit.store.random_teacher import RandomTeacher
from tests.unit.store.small_store import VOCABULARY, folder_bytes, make_store, small_corpus


def stillhouse(*words: object) -> int:
    return run(build_app(), "stillhouse", ["store", *map(str, words)])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "store", small_corpus(tmp_path / "corpus"), TopK(4), teacher=RandomTeacher(VOCABULARY))
    return tmp_path / "store"


def test_a_sound_store_is_verified_and_a_damaged_one_is_exit_2_with_every_fault(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stillhouse("verify", store) == 0
    assert capsys.readouterr().out == "sound: 11 shard(s), 38 samples, 600 tokens\n"
    (store / "train" / "000001.parquet").write_bytes(b"")
    (store / "held_out" / "000000.parquet").unlink()
    assert stillhouse("verify", store, "--json") == 2
    said = capsys.readouterr()
    assert len(json.loads(said.out)["faults"]) == 2
    assert "fault: held_out/000000.parquet is missing" in said.err
    assert said.err.splitlines()[-1].startswith(f"error: {store} has 2 fault(s)")


@pytest.mark.parametrize("encoding", [TopK(4), Hidden(), Dense("bfloat16")], ids=repr)
def test_inspect_shows_a_page_that_a_person_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: TopK | Hidden | Dense
) -> None:
    make_store(tmp_path / "s", small_corpus(tmp_path / "c"), encoding, teacher=RandomTeacher(VOCABULARY), temperature=2)
    assert stillhouse("inspect", tmp_path / "s", "--sample", 3) == 0
    page = capsys.readouterr().out
    assert "fixture, float32, deterministic; fingerprint random 0" in page
    assert re.search(r"train +9 +33 +520 +514", page)
    assert ("kept mass" in page) == isinstance(encoding, TopK)
    assert ("mean entropy" in page) != isinstance(encoding, TopK)
    assert "sample 3: 16 tokens" in page
    assert "the teacher's first choices" in page
    assert stillhouse("inspect", tmp_path / "s", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["train"]["samples"] == 33
    assert stillhouse("inspect", tmp_path / "s", "--sample", 99) == 2


def test_merge_derive_and_export_make_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, teacher = small_corpus(tmp_path / "corpus"), RandomTeacher(VOCABULARY)
    make_store(tmp_path / "whole", corpus, Hidden("float32"), teacher=teacher)
    for index in range(2):
        make_store(tmp_path / f"{index}", corpus, Hidden("float32"), teacher=teacher, share=(index, 2))
    assert stillhouse("merge", tmp_path / "1", "--out", tmp_path / "merged") == 2
    assert "share(s) 0/2 are missing" in capsys.readouterr().err
    assert stillhouse("merge", tmp_path / "1", tmp_path / "0", "--out", tmp_path / "merged") == 0
    assert folder_bytes(tmp_path / "merged") == folder_bytes(tmp_path / "whole")
    flags = ("--encoding", "sampled:8", "--temperature", 2)
    assert stillhouse("derive", tmp_path / "merged", tmp_path / "derived", *flags) == 0
    assert open_store(tmp_path / "derived").manifest.plan.temperature == 2
    assert stillhouse("verify", tmp_path / "derived") == 0
    assert stillhouse("export", tmp_path / "derived", tmp_path / "exported") == 0
    assert stillhouse("export", tmp_path / "derived", tmp_path / "exported") == 2
    assert "is not empty: name a new folder" in capsys.readouterr().err


def test_what_is_no_store_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("verify", "inspect"):
        assert stillhouse(verb, tmp_path) == 2
        assert "is no store" in capsys.readouterr().err


async def test_a_live_service_confirms_its_answers_and_is_warmed_from_them(
    serve_teacher: ServeTeacher, own_valkey: ValkeyProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = small_corpus(tmp_path / "corpus")
    async with serve_teacher(fixture_vocabulary_size=VOCABULARY) as service:
        address = f"127.0.0.1:{service.grpc_port}"
        await asyncio.to_thread(capture, tmp_path / "store", corpus, address, TopK(4))
        asking = ("verify", tmp_path / "store", "--samples", 7, "--teacher")
        assert await asyncio.to_thread(stillhouse, *asking, address) == 0
        assert "7 answer(s) asked for again" in capsys.readouterr().out
    async with serve_teacher(fixture_vocabulary_size=VOCABULARY + 1) as service:
        assert await asyncio.to_thread(stillhouse, *asking, f"127.0.0.1:{service.grpc_port}") == 2
        assert "but this teacher is fixture with" in capsys.readouterr().err
    load = ("load", tmp_path / "store", "--redis-url", own_valkey.url)
    assert await asyncio.to_thread(stillhouse, *load) == 0
    assert "\n38 answers, 0.0 MB" in f"\n{capsys.readouterr().out}"
