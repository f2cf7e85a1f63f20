"""What proves an exported folder: the fingerprint of its weights, and size and digest of each of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from stillhouse.errors import CheckpointError
from stillhouse.fingerprint import weights_fingerprint


def prove(folder: Path) -> dict[str, Any]:
    """Return the proof of a folder: `weights`, and `files` by name.

    Raises:
        CheckpointError: it cannot be read, or holds no weights.
    """
    try:
        files = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "blake2b": _digest(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        tensors = _Stored(folder)
        if not tensors:
            raise CheckpointError(f"{folder} holds no weights")
        return {"folder": folder.name, "weights": weights_fingerprint(tensors), "files": files}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def differences(folder: Path, proof: Mapping[str, Any]) -> list[str]:
    """Return what of a folder does not fit its proof, in words; nothing where all does.

    Raises:
        CheckpointError: it cannot be read, or holds no weights.
    """
    now = prove(folder)
    then, found = proof["files"], now["files"]
    words = [f"{name} is missing" for name in then if name not in found]
    words += [f"{name} was not there" for name in found if name not in then]
    words += [f"{name} is not what was written" for name in then if name in found and then[name] != found[name]]
    if now["weights"] != proof["weights"]:
        words.append(f"the weights are {now['weights']}, and not {proof['weights']}")
    return words


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class _Stored(Mapping[str, Tensor]):
    """The tensors of a folder's .safetensors, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                self._files |= dict.fromkeys(opened.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
