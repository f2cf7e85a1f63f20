"""Where a store may be made: a local folder, new or empty, by one process at a time; what is another's stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.data import DataSpec, Prepared
from stillhouse.errors import StoreError
from stillhouse.store import StoreWriter
from stillhouse.store.folders import MARK, check_place, new_folder
from stillhouse.store.merge import merge
from tests.unit.store.small_store import folder_bytes, make_store, plan_of

Corpus = tuple[Prepared, DataSpec]


def test_the_folder_that_one_stands_in_is_a_place(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "share", corpus)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    merge([tmp_path / "share"], ".")
    assert folder_bytes(tmp_path / "here") == folder_bytes(tmp_path / "share")
    monkeypatch.chdir(tmp_path / "share")
    with pytest.raises(StoreError, match="is there already, and is not empty"), new_folder("."):
        pytest.fail("it gave the folder away")


@pytest.mark.parametrize("place", ["s3://bucket/store", "gs://x/y", "memory://a", "s3:/bucket/store"])
def test_an_address_is_refused_as_a_place_to_write(corpus: Corpus, place: str) -> None:
    with pytest.raises(StoreError, match="a store is written to a local folder"), new_folder(place):
        pytest.fail("it made a folder of that name")
    with pytest.raises(StoreError, match="a store is written to a local folder"):
        StoreWriter(place, plan_of(corpus))
    assert not Path(place.split("/", maxsplit=1)[0]).exists()


def test_a_file_and_a_folder_with_something_else_in_it_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="file is a file: name a folder"):
        check_place(tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(StoreError, match="full is not empty and no store: it holds mine"):
        check_place(tmp_path / "full")
    check_place(tmp_path / "new")


def test_somebodys_folder_of_the_unfinished_ones_name_is_left_alone(tmp_path: Path) -> None:
    aside = tmp_path / "out.partial"
    aside.mkdir()
    (aside / "mine").write_text("mine")
    with pytest.raises(StoreError, match=r"out\.partial is in the way"), new_folder(tmp_path / "out"):
        pytest.fail("it took the folder")
    assert (aside / "mine").read_text() == "mine"


def test_what_a_killed_process_left_is_made_anew(tmp_path: Path) -> None:
    aside = tmp_path / "out.partial"
    (aside / "train").mkdir(parents=True)
    (aside / MARK).touch()
    (aside / "train" / "000000.parquet").write_text("half")
    with new_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("whole")
    assert folder_bytes(tmp_path / "out") == {"whole": b"whole"}
    assert not aside.exists()


def test_two_processes_do_not_share_a_place(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "one").write_text("one")
        with pytest.raises(StoreError, match="out is being made by another process"), new_folder(tmp_path / "out"):
            pytest.fail("it shared the folder")
    assert folder_bytes(tmp_path / "out") == {"one": b"one"}
