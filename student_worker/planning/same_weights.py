"""Is the student its own teacher? Told by the weights themselves, whatever folder or name they were found under.

A run whose student has its teacher's weights learns nothing, for hours, and looks sound. No file is read
where shapes already differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stillhouse.errors import ConfigurationError
from stillhouse.fingerprint import weights_fingerprint
from stillhouse.models import DtypeName, load_causal_lm
from stillhouse.request import TeacherDescription
from student_worker.planning.model_size import hollow_model


def check_not_its_teacher(folder: Path, teacher: TeacherDescription, *, kept_layers: int | None, name: str) -> None:
    """Refuse a student that starts from all of its teacher's weights.

    Args:
        folder: of the student's weights.
        teacher: what the teacher says of itself.
        kept_layers: how many layers the student keeps of the folder's; None: all.
        name: what the recipe calls the folder.

    Raises:
        ConfigurationError: they are the same weights.
    """
    hollow = hollow_model(folder)
    config = hollow.config.get_text_config()
    if kept_layers not in (None, int(config.num_hidden_layers)):
        return
    if teacher.hidden_size not in (0, int(config.hidden_size)):
        return
    if teacher.compute_dtype not in get_args(DtypeName):
        return
    if _loaded_fingerprint(folder, hollow, teacher.compute_dtype) == teacher.weights_fingerprint:
        raise ConfigurationError(
            f"student and teacher have the same weights ({name} is what the teacher at work was loaded from, "
            f"fingerprint {teacher.weights_fingerprint}): there is nothing to learn; name another student.model, or "
            "keep_layers to cut it out of its teacher"
        )


def _loaded_fingerprint(folder: Path, hollow: torch.nn.Module, dtype: str) -> str:
    if found := stored_fingerprint(folder, hollow, getattr(torch, dtype)):
        return found
    # Tensors that files and model name differently (experts, fused layers) are only told apart once they are loaded.
    return weights_fingerprint(load_causal_lm(folder, dtype=cast("DtypeName", dtype)).state_dict())


def stored_fingerprint(folder: Path, hollow: torch.nn.Module, dtype: torch.dtype) -> str:
    """Return the fingerprint that a folder's weights have once they are loaded in `dtype`, without loading a model.

    Args:
        folder: of .safetensors.
        hollow: the model of its configuration, without weights: it tells the names, and which of them are tied.
        dtype: what the weights are cast to.

    Returns:
        The fingerprint; empty where files and model name their tensors differently.
    """
    state = hollow.state_dict(keep_vars=True)
    names_of: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names_of.setdefault(id(tensor), []).append(name)
    files = _files_by_tensor(folder)
    origins = {}
    for name, tensor in state.items():
        # Of tied weights a file may hold either name.
        found = next((twin for twin in (name, *names_of[id(tensor)]) if twin in files), None)
        if found is None:
            return ""
        origins[name] = found
    return weights_fingerprint(_Weights(files, origins, dtype))


def _files_by_tensor(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"model {str(folder)!r} cannot be read: {error}") from error
    return found


class _Weights(Mapping[str, Tensor]):
    """A model's tensors by the model's names, each read when it is asked for."""

    def __init__(self, files: Mapping[str, Path], origins: Mapping[str, str], dtype: torch.dtype) -> None:
        self._files = files
        self._origins = origins
        self._dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        origin = self._origins[name]
        with safe_open(self._files[origin], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(origin)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)
