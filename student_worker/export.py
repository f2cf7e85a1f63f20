"""An ordinary transformers folder (model, configuration, tokenizer, generation configuration, model card), or peft's.

Written aside and renamed, so that a folder is whole or not there at all.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from stillhouse.errors import CheckpointError
from stillhouse.finite import all_finite
from stillhouse.version import __version__
from student_worker.failpoints import fail_point
from student_worker.students.base import ModelCard

MAX_REPLACEMENTS = 8
"""Workers that end one run at the same moment are as few."""


def export_folder(
    folder: Path,
    model: Any,
    tokenizer: Any | None,
    dtype: torch.dtype,
    card: ModelCard,
    *,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Save a model as `AutoModelForCausalLM.from_pretrained(folder)` opens it, in `dtype`; replaces an earlier one.

    `tensors` are saved in place of the model's own.

    Raises:
        CheckpointError: a weight that is not finite, or a failed write.
    """
    given = model.state_dict() if tensors is None else tensors
    saved = {name: _to_cpu(tensor.detach(), dtype) for name, tensor in given.items()}
    _check_finite(folder, saved)
    for name in getattr(model, "_tied_weights_keys", None) or {}:
        if model.config.tie_word_embeddings:
            saved.pop(name, None)

    def save(aside: Path) -> None:
        model.config.dtype = dtype
        model.save_pretrained(aside, state_dict=saved)

    _write(folder, save, tokenizer, _readme(card, str(dtype).removeprefix("torch."), _OPEN_MODEL))


def export_adapter(folder: Path, adapted: Any, tokenizer: Any | None, card: ModelCard) -> None:
    """Save a `PeftModel`'s adapters as `PeftModel.from_pretrained(base, folder)` opens them, in float32.

    Raises:
        CheckpointError: a weight that is not finite, or a failed write.
    """
    _check_finite(folder, {name: p for name, p in adapted.named_parameters() if p.requires_grad})
    base = adapted.active_peft_config.base_model_name_or_path
    facts = ModelCard(card.teacher, card.data, card.license, {**card.facts, "Base": base})
    _write(folder, adapted.save_pretrained, tokenizer, _readme(facts, "float32", _OPEN_ADAPTER))


def _to_cpu(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)


def _check_finite(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise CheckpointError(f"{folder}: {name} holds a value that is not finite; nothing was exported")


def _write(folder: Path, save: Callable[[Path], None], tokenizer: Any | None, readme: str) -> None:
    """Write a folder aside and put it in its place."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        aside.chmod(0o755)
        try:
            save(aside)
            if tokenizer is not None:
                tokenizer.save_pretrained(aside)
            fail_point("mid-export", 0)
            (aside / "README.md").write_text(readme, encoding="utf-8")
            for path in aside.iterdir():
                path.chmod(0o644)  # safetensors makes its files for their owner alone
            _replace(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # a full disk is the latter
        raise CheckpointError(
            f"{folder}: the export could not be written: {error}. Free space there and resume from the checkpoint"
        ) from error


def _replace(aside: Path, folder: Path) -> None:
    """Put a finished folder in the place of an earlier one; another worker may be doing the same."""
    for attempt in range(MAX_REPLACEMENTS):
        earlier = aside.with_name(f"{aside.name}-earlier-{attempt}")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(earlier)
        try:
            aside.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == MAX_REPLACEMENTS - 1:
                raise
        shutil.rmtree(earlier, ignore_errors=True)
        if not aside.exists():
            return


_OPEN_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")"""

_OPEN_ADAPTER = """from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")"""


def _readme(card: ModelCard, dtype: str, code: str) -> str:
    facts = {"Teacher": card.teacher, "Data": card.data, "Licence": card.license, "Dtype": dtype, **card.facts}
    rows = "\n".join(f"| {key} | {' '.join(value.split())} |" for key, value in facts.items())
    return f"""---
library_name: transformers
tags:
- distillation
- stillhouse
---

# A student distilled with Stillhouse {__version__}

| | |
|---|---|
{rows}

```python
{code}
```
"""
