"""Opens the backend that the settings name, among those that are installed.

A backend is installed by an entry point in the group `stillhouse.backends`: its name is what `TEACHER_BACKEND` says,
and it is a callable that takes the `TeacherSettings` and returns a `TeacherBackend`. Ours are found the same way.
Everything heavy is imported here, when it is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from stillhouse.errors import ConfigurationError
from teacher_service.backends.base import TeacherBackend
from teacher_service.progress import report
from teacher_service.settings import TeacherSettings

if TYPE_CHECKING:
    import torch

ENTRY_POINTS = "stillhouse.backends"

# What a pass takes on CUDA unless a setting says otherwise: enough to keep a device busy, few enough to wait for.
_CUDA_PASS_TOKENS = 4096


def open_backend(settings: TeacherSettings) -> TeacherBackend:
    """Load what the settings name; minutes for a large model, of which `teacher_service.progress` hears.

    Raises:
        ConfigurationError: it cannot be run here; the message says what to do.
    """
    backend = _opener(settings.backend)(settings)
    if not isinstance(backend, TeacherBackend):
        raise ConfigurationError(
            f"backend {settings.backend!r} opened a {type(backend).__name__}, which is no TeacherBackend"
        )
    if settings.mode == "deterministic" and backend.describe().mode != "deterministic":
        raise ConfigurationError(f"backend {settings.backend!r} has no deterministic mode: set mode to throughput")
    return backend


def is_follower(settings: TeacherSettings) -> bool:
    """Return whether torchrun has started this process beside the one that serves."""
    return settings.tp_plan is not None and int(os.environ.get("RANK", "0")) > 0


def follow(settings: TeacherSettings) -> None:
    """Load this process's part of a model, and take part in every pass until the process that serves is gone.

    Raises:
        ConfigurationError: it cannot be run here.
    """
    backend: Any = open_backend(settings)
    backend.follow()


def installed_backends() -> dict[str, EntryPoint]:
    """Return every installed backend by its name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _opener(name: str) -> Callable[[TeacherSettings], object]:
    known = installed_backends()
    if name not in known:
        raise ConfigurationError(f"backend {name!r} is not installed; there are: {', '.join(sorted(known)) or 'none'}")
    try:
        opener = known[name].load()
    except Exception as error:  # what somebody else's module raises while it is imported knows no bounds
        raise ConfigurationError(f"backend {name!r} ({known[name].value}) cannot be imported: {error}") from error
    if not callable(opener):
        raise ConfigurationError(
            f"backend {name!r} ({known[name].value}) names a {type(opener).__name__}, which cannot be called with the "
            "settings: its entry point must name a TeacherBackend, or a function that opens one"
        )
    return cast("Callable[[TeacherSettings], object]", opener)


def open_fixture(settings: TeacherSettings) -> TeacherBackend:
    """Open the teacher without a model."""
    from teacher_service.backends.fixture import FixtureBackend

    return FixtureBackend(settings.fixture_vocabulary_size)


def open_transformers(settings: TeacherSettings) -> TeacherBackend:
    """Find, load and probe a causal language model.

    Raises:
        ConfigurationError: there is none, or it cannot be run here.
    """
    import torch

    from stillhouse.models import load_causal_lm, pick_device, resolve_model, silence_transformers
    from teacher_service.backends.tensor_parallel import TensorParallelBackend
    from teacher_service.backends.transformers import TransformersBackend

    silence_transformers()
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    device = pick_device(settings.device)
    if settings.mode == "deterministic" and device.type == "cuda":
        _use_deterministic_kernels()
    name = settings.required_model()
    report("model")
    folder = resolve_model(name, revision=settings.revision)
    report("weights")
    model = load_causal_lm(
        folder,
        device=device,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
        spread=_spread(settings),
        on_progress=lambda done, total: report("weights", done, total),
    )
    report("tokenizer")
    tokens, encode = _tokenizer(folder, settings.trust_remote_code)
    backend = TensorParallelBackend if settings.tp_plan else TransformersBackend
    return backend(
        model,
        name=name,
        tokens=tokens,
        encode=encode,
        pass_tokens=_pass_tokens(settings, device),
    )


def _tokenizer(folder: Any, trust_remote_code: bool) -> tuple[tuple[str, ...], Callable[[str], list[int]] | None]:
    """Return the tokens by id and what makes ids of a text; nothing of either where there is no tokenizer."""
    from stillhouse.models import has_tokenizer, load_tokenizer
    from stillhouse.vocabulary import tokenizer_tokens

    if not has_tokenizer(folder):
        return (), None
    tokenizer: Any = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    return tokenizer_tokens(tokenizer), lambda text: list(tokenizer(text)["input_ids"])


def _pass_tokens(settings: TeacherSettings, device: torch.device) -> int | None:
    if settings.mode == "throughput":
        return None
    return settings.deterministic_pass_tokens or (_CUDA_PASS_TOKENS if device.type == "cuda" else 1)


def _use_deterministic_kernels() -> None:
    """Refuse kernels whose sums depend on chance. For a whole process, before CUDA is first used."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # what is never read needs no filling


def _spread(settings: TeacherSettings) -> dict[str, Any] | None:
    """Return what `from_pretrained` takes for a model larger than one device."""
    if settings.tp_plan is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            raise ConfigurationError(
                f"tp_plan is {settings.tp_plan!r}, but this process is alone: start the service with "
                "`torchrun --nproc-per-node N -m teacher_service ...`, or set device_map"
            )
        from transformers.distributed.configuration_utils import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_plan=settings.tp_plan)}
    if settings.device_map is None:
        return None
    return {"device_map": _device_map(settings.device_map)}


def _device_map(text: str) -> str | dict[str, Any]:
    if text in ("auto", "balanced", "balanced_low_0", "sequential"):
        return text
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict) or not parsed:
        raise ConfigurationError(
            "device_map must be auto, balanced, balanced_low_0, sequential or a JSON object from module to device, "
            f'such as {{"": "cuda:0"}}; got {text!r}'
        )
    for module, device in parsed.items():
        if not _is_device(device):
            raise ConfigurationError(
                f"device_map must name a device that is here, its number, cpu or disk for each module; "
                f"got {device!r} for {module!r}"
            )
    return parsed


def _is_device(name: object) -> bool:
    import torch

    if name in ("cpu", "disk"):
        return True
    if isinstance(name, bool) or not isinstance(name, int | str) or not torch.accelerator.is_available():
        return False
    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    kind = torch.accelerator.current_accelerator()
    return kind is not None and device.type == kind.type and (device.index or 0) < torch.accelerator.device_count()
