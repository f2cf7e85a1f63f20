"""An export that fails is one clear error, and leaves nothing half-written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from stillhouse.errors import CheckpointError
from student_worker.export import _replace, export_folder
from student_worker.students.base import ModelCard


class FullDisk(nn.Linear):
    """A model whose save meets a full disk half-way."""

    def __init__(self, fault: Exception) -> None:
        super().__init__(2, 2)
        self.config = nn.Module()
        self._fault = fault

    def save_pretrained(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        assert state_dict
        (folder / "model.safetensors").write_bytes(b"half")
        raise self._fault


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["by the system", "by safetensors"],
)
def test_a_full_disk_is_said_and_the_earlier_export_stays(tmp_path: Path, fault: Exception) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    card = ModelCard(teacher="t", data="d", license="l", facts={})
    with pytest.raises(CheckpointError, match=r"export could not be written: .*No space left on device.*Free space"):
        export_folder(folder, FullDisk(fault), None, torch.float32, card)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_workers_that_export_at_the_same_moment_are_not_in_each_others_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One finishes between another's look at the folder and its rename."""
    folder = tmp_path / "export"
    rename = Path.rename
    others = iter((True, True, False))

    def overtaken(self: Path, target: Path) -> Path:
        if target == folder and next(others):
            folder.mkdir()
            (folder / "another.txt").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    aside = tmp_path / "aside"
    aside.mkdir()
    (aside / "ours.txt").touch()
    _replace(aside, folder)
    assert [path.name for path in folder.iterdir()] == ["ours.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
