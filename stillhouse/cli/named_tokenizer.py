"""Opens the tokenizer that a command line names: a folder, a hub name, a .gguf file, or smollm2.

A folder may hold a tokenizer alone, and of a hub name no weights are fetched. Knows nothing of what it is opened for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillhouse.errors import ConfigurationError


def open_tokenizer(name: str, revision: str | None = None) -> Any:
    """Return the tokenizer.

    Raises:
        ConfigurationError: there is none of that name, or a revision of something local.
    """
    from stillhouse.models import load_tokenizer, silence_transformers

    silence_transformers()
    local = _local_folder(name, revision)
    if local is not None:
        return load_tokenizer(local)
    from transformers import AutoTokenizer

    try:
        # Not through `resolve_model`, which would fetch the weights too.
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigurationError(
            f"tokenizer {name!r} is neither a folder nor one that the hub gives now "
            f"({str(error).splitlines()[0]}); name a folder, a hub name or smollm2"
        ) from error


def head_size(name: str, revision: str | None = None) -> int | None:
    """Return how many logits the model beside a tokenizer gives; None where there is none, or it doesn't say."""
    from transformers import AutoConfig

    folder = _local_folder(name, revision)
    if folder is not None and not (folder / "config.json").is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(folder or name, revision=revision if folder is None else None)
    except (OSError, ValueError, KeyError, ImportError):
        # A model that this machine's transformers does not know still has a tokenizer to be compared.
        return None
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def _local_folder(name: str, revision: str | None) -> Path | None:
    from stillhouse.models import SMOLLM2, looks_like_a_path, resolve_model

    path = Path(name or "(nothing)").expanduser()
    if not (path.exists() or name == SMOLLM2 or looks_like_a_path(name)):
        return None
    if revision is not None:
        raise ConfigurationError(f"revision {revision!r} has no effect: the tokenizer {name!r} is local")
    return path if path.is_dir() else resolve_model(name)
