"""Places for checkpoints that tests run over: a folder, and file systems that know no rename."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from student_worker.checkpoints import Place
from student_worker.checkpoints.folder import Folder
from student_worker.checkpoints.remote import Remote

KINDS = ("folder", "memory", "files")


@contextmanager
def place_of_kind(kind: str, tmp_path: Path) -> Iterator[Place]:
    """Yield an empty place: a folder, fsspec's memory, or files as fsspec reaches them (another machine's, say)."""
    match kind:
        case "folder":
            yield Folder(tmp_path / "run")
        case "memory":
            import fsspec

            address = f"memory://{tmp_path.name}/run"
            yield Remote(address)
            with suppress(FileNotFoundError):
                fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)
        case "files":
            yield Remote(f"local://{tmp_path}/run")


def content(place: Place) -> dict[str, bytes]:
    """Return every file of a place by its path in it; those that begin with a dot too."""
    if isinstance(place, Folder):
        files = [path for path in place.root.rglob("*") if path.is_file()]
        return {str(path.relative_to(place.root)): path.read_bytes() for path in files}
    assert isinstance(place, Remote)
    root = place._root
    return {path[len(root) + 1 :]: place._files.cat_file(path) for path in place._files.find(root)}


def change(place: Place, name: str, data: bytes | None) -> None:
    """Replace a file's bytes behind the store's back, or remove it."""
    if isinstance(place, Folder):
        path = place.root / name
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        return
    assert isinstance(place, Remote)
    if data is None:
        place._files.rm_file(f"{place._root}/{name}")
    else:
        place._files.pipe_file(f"{place._root}/{name}", data)


def file_of(place: Place, step: int, kind: str) -> str:
    """Return the path of a checkpoint's `tensors` or `state`."""
    (name,) = (name for name in content(place) if name.startswith(f"checkpoint-{step}/{kind}"))
    return name


def some_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tied = torch.randn(8, 4, generator=generator)
    return {
        "weight": tied,
        "head": tied,
        "moment": torch.randn(3, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "step": torch.tensor(3.0),
    }


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
