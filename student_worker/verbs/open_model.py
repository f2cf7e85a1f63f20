"""Opens a model to be asked: whatever `resolve_model` finds, the folder of a run (its export), one with adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from stillhouse.errors import ConfigurationError
from stillhouse.models import load_causal_lm, resolve_model

ADAPTER_FILE = "adapter_config.json"


def open_model(name: str, *, device: torch.device | str = "cpu", revision: str | None = None) -> tuple[Any, list[Path]]:
    """Return a causal language model in eval mode, and the folders to look for its tokenizer in.

    Raises:
        ConfigurationError: there is none, it cannot be loaded, or its adapters do not fit their base.
    """
    folder = _folder(name, revision)
    if (folder / ADAPTER_FILE).is_file():
        return _open_adapters(folder, device)
    return load_causal_lm(folder, device=device), [folder]


def _folder(name: str, revision: str | None) -> Path:
    """Return the folder that a name leads to: of a run its export."""
    path = Path(name).expanduser()
    if (path / ADAPTER_FILE).is_file():
        return path.resolve()
    if path.is_dir() and not (path / "config.json").is_file():
        if (path / "export").is_dir():
            return _folder(str(path / "export"), revision)
        if (path / "run.json").is_file():
            raise ConfigurationError(
                f"model {name!r} is a run that has not come to its export yet; resume it to its end"
            )
        if (path / "state.json").is_file():
            raise ConfigurationError(f"model {name!r} is a checkpoint, to resume from; name the run's export instead")
    return resolve_model(name, revision=revision)


def _open_adapters(folder: Path, device: torch.device | str) -> tuple[Any, list[Path]]:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ConfigurationError(
            f"model {str(folder)!r} holds adapters, and peft is not installed ({error.name}): "
            "pip install 'stillhouse[lora]'"
        ) from error
    try:
        config = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
        base = str(config["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"model {str(folder)!r}: {ADAPTER_FILE} does not name a base: {error}") from error
    below = resolve_model(base, revision=config.get("revision"))
    try:
        adapted = PeftModel.from_pretrained(load_causal_lm(below, device=device), str(folder))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigurationError(
            f"model {str(folder)!r}: its adapters do not fit the base {base!r}: {str(error).splitlines()[0]}"
        ) from error
    return adapted.eval(), [folder, below]
