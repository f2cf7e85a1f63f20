"""Checkpoints written in the background: of the moment they were asked for, one at a time, and never silently lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from torch import Tensor

from stillhouse.errors import CheckpointError
from student_worker.checkpoints import CheckpointStore, store
from student_worker.checkpoints.folder import Folder
from tests.integration.student_worker.checkpoint_places import assert_same, some_tensors

WAIT_SECONDS = 30.0


class HeldFolder(Folder):
    """Begins to write only when it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.let = threading.Event()
        self.error: Exception | None = None
        self.writing = 0
        self.most_writing = 0

    def write(
        self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], best: Mapping[str, Any] | None
    ) -> None:
        self.writing += 1
        self.most_writing = max(self.most_writing, self.writing)
        assert self.let.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        super().write(step, tensors, metadata, best)
        self.writing -= 1


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[HeldFolder]:
    folder = HeldFolder(tmp_path)
    yield folder
    folder.let.set()


def test_weights_that_move_during_the_write_are_not_in_it(folder: HeldFolder) -> None:
    checkpoints = CheckpointStore(folder)
    tensors, metadata = some_tensors(), {"step": 1, "progress": {"since": 0}}
    asked_for = {name: tensor.clone() for name, tensor in tensors.items()}
    path = checkpoints.save(1, tensors, metadata)
    for tensor in tensors.values():
        tensor.add_(1)
    metadata["progress"] = "later"
    assert checkpoints.finished() == [], "it is not complete yet"
    assert folder.steps() == []
    folder.let.set()
    assert checkpoints.finish() == [path]
    loaded = checkpoints.load()
    assert loaded is not None
    assert_same(loaded.tensors, asked_for)
    assert loaded.metadata == {"step": 1, "progress": {"since": 0}}


def test_the_next_one_waits_for_the_one_under_way(folder: HeldFolder) -> None:
    checkpoints = CheckpointStore(folder)
    tensors = {"weight": torch.zeros(1000)}
    checkpoints.save(1, tensors, {})
    threading.Timer(0.1, folder.let.set).start()
    for step in (2, 3, 4):
        tensors["weight"] += 1
        checkpoints.save(step, tensors, {})
    checkpoints.finish()
    assert folder.most_writing == 1
    for step in (1, 2, 3, 4):
        assert float(folder.read(step).tensors["weight"].max()) == step - 1


@pytest.mark.parametrize("call", ["save", "finished", "finish"])
def test_what_goes_wrong_is_said_once_at_the_next_call(folder: HeldFolder, call: str) -> None:
    checkpoints = CheckpointStore(folder)
    folder.error = CheckpointError("the disk is full")
    folder.let.set()
    checkpoints.save(1, some_tensors(), {})
    assert checkpoints._writing is not None
    checkpoints._writing.join(WAIT_SECONDS)
    with pytest.raises(CheckpointError, match="the disk is full"):
        checkpoints.save(2, some_tensors(), {}) if call == "save" else getattr(checkpoints, call)()
    folder.error = None
    checkpoints.save(3, some_tensors(), {})
    checkpoints.finish()
    assert folder.steps() == [3]


def test_an_error_of_no_known_kind_is_said_too(folder: HeldFolder) -> None:
    checkpoints = CheckpointStore(folder)
    folder.error = ZeroDivisionError("surprise")
    folder.let.set()
    checkpoints.save(1, some_tensors(), {})
    with pytest.raises(CheckpointError, match="surprise"):
        checkpoints.finish()


def test_a_write_that_never_ends_is_a_failure(folder: HeldFolder) -> None:
    checkpoints = CheckpointStore(folder, wait_seconds=0.05)
    checkpoints.save(1, some_tensors(), {})
    with pytest.raises(CheckpointError, match=r"for more than 0\.05 s"):
        checkpoints.save(2, some_tensors(), {})


def test_who_leaves_for_another_reason_hears_of_it_in_the_log(folder: HeldFolder) -> None:
    checkpoints = CheckpointStore(folder)
    folder.error = CheckpointError("the disk is full")
    folder.let.set()
    checkpoints.save(1, some_tensors(), {})
    with structlog.testing.capture_logs() as logs:
        checkpoints.close()
    assert [(line["event"], line["reason"]) for line in logs] == [("checkpoint_not_written", "the disk is full")]


def test_without_memory_for_a_copy_it_is_written_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "free_memory", lambda _: 10)
    checkpoints = CheckpointStore(tmp_path)
    with structlog.testing.capture_logs() as logs:
        checkpoints.save(1, some_tensors(), {})
    assert checkpoints.place.steps() == [1]
    assert logs[0]["event"] == "checkpoint_in_foreground"


def test_the_copys_memory_is_asked_for_once(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path)
    tensors = some_tensors()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert checkpoints._snapshot.missing_bytes(tensors) == size
    places = set()
    for step in (1, 2, 3):
        checkpoints.save(step, tensors, {})
        places.add(checkpoints._snapshot._copies["weight"].data_ptr())
        assert checkpoints._snapshot.missing_bytes(tensors) == 0
    checkpoints.finish()
    assert len(places) == 1
