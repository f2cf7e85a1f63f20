"""The folder of a run: claimed once, gone on with on demand, and its journal rewound to where it is resumed."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import CheckpointError, ConfigurationError
from student_worker.recipe.schema import Recipe
from student_worker.recipe.sources import load_recipe
from student_worker.run import run
from student_worker.run_folder.journal import Journal, write_result
from student_worker.run_folder.output import (
    announce,
    check_output_dir,
    claim,
    own_folder,
    read_evaluations,
    wait_for_siblings,
)

IDENTITY = {"recipe": "abc", "data": "def"}


def recipe(folder: Path, **flags: Any) -> Recipe:
    given = {"teacher": "a:1", "data": ["x.txt"], "keep_layers": "0", "output_dir": str(folder), **flags}
    return load_recipe(None, given, {})


def test_a_folder_with_a_run_is_refused_unless_it_goes_on(tmp_path: Path) -> None:
    check_output_dir(recipe(tmp_path / "run"))
    claim(recipe(tmp_path / "run"), IDENTITY)
    with pytest.raises(ConfigurationError, match="--resume"):
        check_output_dir(recipe(tmp_path / "run"))
    check_output_dir(recipe(tmp_path / "run", resume=True))
    check_output_dir(recipe(tmp_path / "run", lighthouse="a:2"))


def test_a_folder_of_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    claim(recipe(tmp_path), IDENTITY)
    claim(recipe(tmp_path, resume=True), IDENTITY)
    with pytest.raises(ConfigurationError, match="whose data is def, and not other"):
        claim(recipe(tmp_path, resume=True), {**IDENTITY, "data": "other"})


def test_the_keys_of_another_recipe_are_named(tmp_path: Path) -> None:
    claim(recipe(tmp_path), IDENTITY)
    with pytest.raises(ConfigurationError, match=r"recipe is abc, and not xyz \(seed was 42 and is 7\)"):
        claim(recipe(tmp_path, resume=True, seed="7"), {**IDENTITY, "recipe": "xyz"})


def test_a_smoke_run_neither_claims_the_folder_nor_minds_whose_it_is(tmp_path: Path) -> None:
    claim(recipe(tmp_path / "run"), IDENTITY)
    smoke = own_folder(recipe(tmp_path / "run", smoke_steps="3"))
    check_output_dir(smoke)
    claim(smoke, {"recipe": "other"})
    assert smoke.output_dir == tmp_path / "run" / "smoke"
    assert list(smoke.output_dir.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"identity": 3}', b"\xff".decode("latin-1")])
def test_a_damaged_run_file_is_said_and_not_believed(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=r"run\.json does not say whose run this is.*remove it"):
        claim(recipe(tmp_path, resume=True), IDENTITY)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="no folder"):
        check_output_dir(recipe(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="cannot be written"):
        claim(recipe(tmp_path / "file" / "below"), IDENTITY)


def test_a_worker_says_where_it_serves(tmp_path: Path) -> None:
    announce(recipe(tmp_path, worker_index="2"), "http://127.0.0.1:9")
    assert json.loads((tmp_path / "worker-2.json").read_text())["http"] == "http://127.0.0.1:9"


def test_workers_of_one_launcher_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("student_worker.run_folder.output.START_TOGETHER_SECONDS", 0.2)
    first = recipe(tmp_path, worker_index="0", local_workers="2")
    second = recipe(tmp_path, worker_index="1", local_workers="2")
    announce(first, "http://127.0.0.1:9")
    assert not wait_for_siblings(first, threading.Event())
    announce(second, "http://127.0.0.1:10")
    assert wait_for_siblings(first, threading.Event())
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert not wait_for_siblings(first, threading.Event()), "the file is of an earlier launch"


def test_a_worker_that_was_started_by_itself_waits_for_nobody(tmp_path: Path) -> None:
    assert wait_for_siblings(recipe(tmp_path, worker_index="1"), threading.Event())


def test_a_run_that_goes_on_writes_over_the_steps_that_it_does_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(event="evaluation", step=0, kl=9.0)
    for step in range(1, 6):
        journal.add(event="step", step=step, loss=float("nan") if step == 2 else 1.0)
        journal.flush(step=step, writes=True)
    with journal.path.open("a") as file:
        file.write('{"event": "step", "st')
    again = Journal(tmp_path)
    again.add(event="step", step=4, loss=7.0)
    again.flush(step=4, writes=True)
    again.add(event="evaluation", step=4, kl=8.0)
    again.flush(step=4, writes=True)
    assert [record["step"] for record in again.read()] == [0, 1, 2, 3, 4, 4]
    assert again.read()[2]["loss"] is None
    assert again.read()[4]["loss"] == 7.0
    assert read_evaluations(tmp_path) == [{"step": 0, "kl": 9.0}, {"step": 4, "kl": 8.0}]


def test_a_result_replaces_the_one_before(tmp_path: Path) -> None:
    write_result(tmp_path, {"steps": 1})
    write_result(tmp_path, {"steps": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"steps": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_full_disk_is_said_with_the_files_name_and_leaves_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_result(tmp_path, {"steps": 1})

    def write_half(path: Path, *_: object, **__: object) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(CheckpointError, match=r"result\.json could not be written: No space left on device.*resume"):
        write_result(tmp_path, {"steps": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert json.loads((tmp_path / "result.json").read_text()) == {"steps": 1}


def test_a_full_disk_under_the_journal_is_said_with_its_name(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.path.symlink_to("/dev/full")
    journal.add(event="step", step=1)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl could not be written: No space left on device"):
        journal.flush(step=1, writes=True)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"lighthouse": "127.0.0.1:29510"}, "run_token is missing: set STUDENT_RUN_TOKEN"),
        ({"lighthouse": "nowhere", "run_token": "t"}, "lighthouse is 'nowhere'; it must be HOST:PORT"),
    ],
)
def test_a_group_that_cannot_be_made_is_refused_before_the_folder_is(
    tmp_path: Path, flags: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run(recipe(tmp_path / "run", **flags))
    assert not (tmp_path / "run").exists()
