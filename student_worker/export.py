"""An ordinary transformers folder: model, configuration, tokenizer, generation configuration, model card.

Written aside and renamed, so that a folder is whole or not there at all.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from stillhouse.errors import CheckpointError
from stillhouse.version import __version__
from student_worker.failpoints import fail_point
from student_worker.students.base import ModelCard


def export_folder(folder: Path, model: Any, tokenizer: Any | None, dtype: torch.dtype, card: ModelCard) -> None:
    """Save a model as `AutoModelForCausalLM.from_pretrained(folder)` opens it, in `dtype`; replaces an earlier one.

    Raises:
        CheckpointError: a weight that is not finite, or a failed write.
    """
    tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{folder}: {name} holds a value that is not finite; nothing was exported")
    for name in getattr(model, "_tied_weights_keys", None) or {}:
        if model.config.tie_word_embeddings:
            tensors.pop(name, None)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        aside.chmod(0o755)
        try:
            model.config.dtype = dtype
            model.save_pretrained(aside, state_dict=tensors)
            if tokenizer is not None:
                tokenizer.save_pretrained(aside)
            fail_point("mid-export", 0)
            (aside / "README.md").write_text(_readme(card, str(dtype).removeprefix("torch.")), encoding="utf-8")
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
    """Put a finished folder in the place of an earlier one."""
    if not folder.exists():
        aside.rename(folder)
        return
    earlier = aside.with_name(aside.name + "-earlier")
    folder.rename(earlier)
    aside.replace(folder)
    shutil.rmtree(earlier, ignore_errors=True)


def _readme(card: ModelCard, dtype: str) -> str:
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
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")
```
"""
