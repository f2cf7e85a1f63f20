"""Turns a GGUF file into a folder of safetensors, once: such a folder loads in a tenth of a second, not in twenty.

The folder is named by the file's content, so that a changed file is converted anew and a copied one is not. Knows
nothing of what the model is used for.
"""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from stillhouse.errors import ConfigurationError

CONVERSION_VERSION = 1
"""Part of the folder's name: raise it when a conversion would write something else."""

LOCK_TIMEOUT_SECONDS = 1800.0
"""The longest wait for another process that converts the same file; the largest known take minutes."""

logger = logging.getLogger(__name__)


def convert_gguf(file: Path, cache_dir: Path | None = None) -> Path:
    """Return the folder with the file's model, tokenizer and generation config, converting it where needed.

    Weights are float32, exactly what the quantised values mean. Complete or absent: it is written aside and renamed,
    and of several processes that ask at once one converts while the others wait.

    Raises:
        ConfigurationError: the file is no GGUF file that `transformers` can read, or the cache cannot be written.
    """
    from filelock import FileLock, Timeout
    from safetensors import SafetensorError

    models = (cache_dir or _default_cache_dir()) / "models"
    try:
        folder = models / f"{_digest(file)}-v{CONVERSION_VERSION}"
        if folder.is_dir():
            return folder
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=LOCK_TIMEOUT_SECONDS):
            if not folder.is_dir():
                # The lock is ours, so whatever lies here is what a killed conversion left.
                partial = folder.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                with _announced(file, folder):
                    _convert(file, partial)
                partial.rename(folder)
    except Timeout as error:
        raise ConfigurationError(
            f"model {str(file)!r}: another process has been converting it for {LOCK_TIMEOUT_SECONDS:.0f} s; "
            f"end it and remove {folder}.lock"
        ) from error
    except (OSError, SafetensorError) as error:  # a full disk is the latter
        raise ConfigurationError(f"model {str(file)!r} cannot be converted into {models}: {error}") from error
    return folder


def _convert(file: Path, target: Path) -> None:
    import torch
    import transformers

    auto: Any = transformers  # its own annotations of `from_pretrained` are too narrow
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ConfigurationError(f"model {str(file)!r} is no GGUF file: it does not begin with its magic")
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        model = auto.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = auto.AutoTokenizer.from_pretrained(**source)
    except OSError:
        raise
    except Exception as error:  # a reader of untrusted bytes: what it raises on damaged ones knows no bounds
        raise ConfigurationError(f"model {str(file)!r} cannot be read as GGUF: {error}") from error
    # The weights are plain float32 by now; save_pretrained refuses as long as these say otherwise.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


@contextmanager
def _announced(file: Path, folder: Path) -> Iterator[None]:
    """Say that it takes a while: a spinner where somebody watches, and a line in the log."""
    from rich.console import Console

    message = f"Converting {file.name} to safetensors, once (about 20 s for 135 million weights)"
    logger.info("%s into %s", message, folder)
    console = Console(file=sys.stderr)
    # The reader draws a progress bar of its own that knows no switch: it would fill a service's log.
    with console.status(message) if console.is_terminal else nullcontext(), redirect_stderr(io.StringIO()):
        yield


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _default_cache_dir() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("stillhouse")
