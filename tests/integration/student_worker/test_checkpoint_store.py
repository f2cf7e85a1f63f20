"""What every place for checkpoints holds to: a folder, and file systems that know no rename."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.errors import CheckpointError, ConfigurationError
from student_worker.checkpoints import BEST_FILE, CheckpointStore, Place
from student_worker.checkpoints.folder import Folder
from student_worker.checkpoints.remote import Remote, without_secrets
from tests.integration.student_worker.checkpoint_places import (
    KINDS,
    assert_same,
    change,
    content,
    file_of,
    place_of_kind,
    some_tensors,
)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place_of_kind(request.param, tmp_path) as place:
        yield place


def save(store: CheckpointStore, *steps: int, **keys: Any) -> None:
    for step in steps:
        store.save(step, some_tensors(step), {"step": step}, **keys)
    store.finish()


def best(step: int, value: float) -> dict[str, Any]:
    return {"step": step, "metric": "loss", "value": value}


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_comes_back_as_it_was(place: Place, background: bool) -> None:
    metadata = {"order": {"position": 96}, "recipe": "abc", "rate": 0.1 + 0.2}
    store = CheckpointStore(place)
    path = store.save(12, some_tensors(), metadata, background=background)
    assert store.finish() == [path]
    assert store.finished() == []
    loaded = CheckpointStore(place).load()
    assert loaded is not None
    assert (loaded.path, loaded.step, loaded.metadata) == (path, 12, metadata)
    assert_same(loaded.tensors, some_tensors())
    assert len(content(place)) == 2


def test_both_ways_of_writing_write_the_same_bytes(place: Place) -> None:
    store = CheckpointStore(place)
    store.save(1, some_tensors(), {"a": 1}, background=False)
    foreground = content(place)[file_of(place, 1, "tensors")]
    store.save(1, some_tensors(), {"a": 1})
    store.finish()
    assert content(place)[file_of(place, 1, "tensors")] == foreground


def test_the_latest_is_the_one_of_most_steps_not_the_last_in_the_alphabet(place: Place) -> None:
    store = CheckpointStore(place)
    assert store.latest() is None
    assert store.load() is None
    save(store, 9, 100, 20)
    assert place.steps() == [9, 20, 100]
    assert store.latest() == 100


def test_only_the_newest_are_kept(place: Place) -> None:
    save(CheckpointStore(place, keep_last=2), *range(1, 7))
    assert place.steps() == [5, 6]
    assert len(content(place)) == 4, "nothing else is left"


def test_a_step_that_is_saved_again_is_replaced(place: Place) -> None:
    store = CheckpointStore(place)
    store.save(1, some_tensors(1), {"attempt": 1})
    store.save(1, some_tensors(2), {"attempt": 2})
    store.finish()
    loaded = store.load()
    assert loaded is not None
    assert loaded.metadata == {"attempt": 2}
    assert_same(loaded.tensors, some_tensors(2))
    assert len(content(place)) == 2


def test_the_best_is_kept_beside_the_newest_until_there_is_a_better_one(place: Place) -> None:
    store = CheckpointStore(place, keep_last=2)
    save(store, 1)
    save(store, 2, best=best(2, 0.5))
    save(store, 3, 4, 5)
    assert place.steps() == [2, 4, 5]
    assert store.best() == {**best(2, 0.5), "checkpoint": "checkpoint-2"}
    assert CheckpointStore(place).best() == store.best(), "a worker that takes over knows it"
    save(store, 6, best=best(6, 0.4))
    save(store, 7, 8)
    assert place.steps() == [6, 7, 8]
    assert json.loads(content(place)[BEST_FILE]) == {**best(6, 0.4), "checkpoint": "checkpoint-6"}


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"step": null, "value": 1}', b"\xff\xfe"])
def test_a_best_file_that_was_lost_or_damaged_is_told_by_the_checkpoints_themselves(place: Place, text: bytes) -> None:
    store = CheckpointStore(place, keep_last=3)
    save(store, 1, best=best(1, 0.5))
    save(store, 2, best=best(2, 0.25))
    save(store, 3)
    change(place, BEST_FILE, text)
    assert store.best() is None
    assert store.mend_best("loss") == best(2, 0.25)
    assert store.best() == {**best(2, 0.25), "checkpoint": "checkpoint-2"}
    assert store.mend_best("kl") is None, "a figure of another name cannot be compared with"


def test_a_best_checkpoint_that_is_damaged_gives_way_to_the_next_best(place: Place) -> None:
    store = CheckpointStore(place)
    save(store, 1, best=best(1, 0.5))
    save(store, 2, best=best(2, 0.25))
    change(place, file_of(place, 2, "tensors"), b"")
    assert store.mend_best("loss") == best(1, 0.5)
    assert (store.best() or {})["step"] == 1


@pytest.mark.parametrize("useless", [{}, {"weight": torch.empty(0)}])
def test_a_checkpoint_without_tensors_is_refused(place: Place, useless: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="holds no tensors"):
        CheckpointStore(place).save(1, useless, {}, background=False)
    assert content(place) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_checkpoint_with_a_nan_is_refused_and_the_tensor_named(place: Place, dtype: torch.dtype) -> None:
    poisoned = torch.zeros(1000)
    poisoned[617] = float("nan")
    store = CheckpointStore(place)
    store.save(1, {"fine": torch.ones(3), "weight": poisoned.to(dtype)}, {})
    with pytest.raises(CheckpointError, match="'weight' holds a NaN"):
        store.finish()
    assert content(place) == {}


def test_an_infinite_moment_is_no_nan(place: Place) -> None:
    save_me = {"weight": torch.tensor([float("inf"), float("-inf")])}
    CheckpointStore(place).save(1, save_me, {}, background=False)
    assert place.steps() == [1]


def test_metadata_that_is_not_json_is_refused(place: Place) -> None:
    for metadata in ({"path": Path("x")}, {"loss": float("nan")}):
        with pytest.raises(CheckpointError, match="not JSON"):
            CheckpointStore(place).save(1, some_tensors(), metadata)
    assert content(place) == {}


def test_a_place_is_tried_before_it_is_needed(place: Place) -> None:
    place.check_writable()
    assert content(place) == {}


def test_an_address_of_no_known_protocol_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="checkpoint_dir 'nowhere://bucket/run' cannot be used"):
        CheckpointStore("nowhere://bucket/run")
    assert isinstance(CheckpointStore(f"file://{tmp_path}").place, Folder)
    assert isinstance(CheckpointStore("memory://a/b").place, Remote)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://key:secret@bucket/run", "s3://bucket/run"),
        ("s3://bucket/run?token=secret", "s3://bucket/run"),
        ("gs://bucket/a/b", "gs://bucket/a/b"),
    ],
)
def test_what_messages_call_an_address_holds_no_secret(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
