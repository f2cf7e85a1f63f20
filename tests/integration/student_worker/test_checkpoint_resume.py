"""Resuming: from the newest checkpoint that is sound, loudly if that is not the newest, or a clear stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from stillhouse.errors import CheckpointError
from stillhouse.fingerprint import fingerprint
from student_worker.checkpoints import Checkpoint, CheckpointStore, DamagedError, Place
from student_worker.checkpoints.folder import Folder
from tests.integration.student_worker.checkpoint_places import (
    KINDS,
    change,
    content,
    file_of,
    place_of_kind,
    some_tensors,
)

FILES = ("tensors", "state")
DAMAGES = ("truncated", "altered", "one bit", "lengthened", "empty", "missing")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place_of_kind(request.param, tmp_path) as place:
        yield place


@pytest.fixture
def store(place: Place) -> CheckpointStore:
    """Three checkpoints, of steps 4, 8 and 12."""
    store = CheckpointStore(place)
    for step in (4, 8, 12):
        store.save(step, some_tensors(step), {"step": step}, background=False)
    return store


def damage(place: Place, step: int, kind: str, how: str) -> str:
    name = file_of(place, step, kind)
    data = content(place)[name]
    flipped = bytearray(data)
    flipped[len(data) * 2 // 3] ^= 1
    damaged = {
        "truncated": data[:-3],
        "altered": data.replace(b"1", b"7", 1),
        "one bit": bytes(flipped),
        "lengthened": data + b"{}",
        "empty": b"",
        "missing": None,
    }
    change(place, name, damaged[how])
    return name


def is_absent(place: Place, kind: str, how: str) -> bool:
    """Where there is no rename, a checkpoint without its state.json was never completed."""
    return not isinstance(place, Folder) and (kind, how) == ("state", "missing")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_is_passed_over_and_said(place: Place, store: CheckpointStore, kind: str, how: str) -> None:
    name = damage(place, 12, kind, how)
    with structlog.testing.capture_logs() as logs:
        loaded = store.load()
    assert loaded is not None
    assert loaded.step == 8
    if is_absent(place, kind, how):
        return
    said, resuming = logs
    assert said["event"] == "checkpoint_damaged"
    assert said["checkpoint"] == place.path(12)
    assert name in said["reason"]
    assert (resuming["event"], resuming["steps_done_again"]) == ("resuming_from_an_older_checkpoint", 4)
    with pytest.raises(DamagedError, match=name):
        place.read(12)


def test_where_all_are_damaged_the_run_stops_and_does_not_begin_anew(place: Place, store: CheckpointStore) -> None:
    for step in (4, 8, 12):
        damage(place, step, "tensors", "one bit")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is sound: .*checkpoint-12.*remove them all"):
        store.load()


@pytest.mark.usefixtures("store")
def test_a_damaged_one_never_displaces_a_sound_one(place: Place) -> None:
    damage(place, 12, "tensors", "one bit")
    again = CheckpointStore(place, keep_last=1)
    assert loaded_step(again) == 8
    again.save(10, some_tensors(10), {}, background=False)
    assert place.steps() == [10, 12], "the damaged one of a later step is left, and does not count"
    assert loaded_step(again) == 10
    again.save(12, some_tensors(12), {}, background=False)
    assert place.steps() == [12]
    assert loaded_step(again) == 12


def test_a_newer_format_is_a_stop_and_not_passed_over(place: Place, store: CheckpointStore) -> None:
    rewrite_state(place, 12, version=2)
    with pytest.raises(CheckpointError, match=r"version 2; this release reads .* version 1"):
        store.load()


@pytest.mark.parametrize(
    "fields",
    [
        {"files": {"../../outside.safetensors": {"bytes": 1, "xxh3_128": ""}}},
        {"files": {}},
        {"files": {"tensors.safetensors": 3}},
        {"step": None},
        {"metadata": 7},
        {"best": 7},
    ],
)
def test_a_state_that_lies_in_good_form_is_a_stop(
    place: Place, store: CheckpointStore, fields: dict[str, object]
) -> None:
    rewrite_state(place, 12, **fields)
    with pytest.raises(CheckpointError, match=r"state\.json is not one that this release writes.*remove it"):
        store.load()


def test_a_checkpoint_that_was_renamed_to_another_step_is_not_believed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, some_tensors(), {}, background=False)
    (tmp_path / "checkpoint-2").rename(tmp_path / "checkpoint-9")
    assert loaded_step(store) == 1
    with pytest.raises(DamagedError, match="checkpoint-9 holds the checkpoint of step 2: it was renamed"):
        store.place.read(9)


def test_one_that_is_removed_while_it_is_read_is_no_damage(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = CheckpointStore(place, keep_last=1), CheckpointStore(place)
    writer.save(4, some_tensors(), {}, background=False)
    read = place.read

    def overtaken(step: int) -> Checkpoint:
        if step == 4:
            writer.save(8, some_tensors(), {}, background=False)
        return read(step)

    monkeypatch.setattr(place, "read", overtaken)
    with structlog.testing.capture_logs() as logs:
        assert loaded_step(reader) == 8
    assert logs == []


def test_folders_with_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, some_tensors(), {}, background=False)
    for name in ("checkpoint-last", "checkpoint-2.bak", ".checkpoint-9.elsewhere.1.aside"):
        (tmp_path / name).mkdir()
    assert store.place.steps() == [1]


def loaded_step(store: CheckpointStore) -> int:
    loaded = store.load()
    assert loaded is not None
    return loaded.step


def rewrite_state(place: Place, of_step: int, /, **fields: Any) -> None:
    """Change fields of a state.json and make its checksum right again."""
    name = file_of(place, of_step, "state")
    state = json.loads(content(place)[name]) | fields
    del state["checksum"]
    state["checksum"] = fingerprint(json.dumps(state, sort_keys=True))
    change(place, name, json.dumps(state).encode())
