"""Makes the student that a recipe describes, the same one in every worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

from stillhouse.data import Sample
from stillhouse.errors import ConfigurationError
from stillhouse.models import SMOLLM2, check_weights_finite, load_causal_lm, load_tokenizer, resolve_model
from student_worker.recipe.schema import CausalLMSpec, FixtureSpec
from student_worker.students.base import Student
from student_worker.students.causal_lm import CausalLMStudent, checkpoint_activations
from student_worker.students.dropout import check_dropout_acts, dropout_overrides
from student_worker.students.fixture import FixtureTrainee
from student_worker.students.importance import block_influence, check_keep, most_important_layers
from student_worker.students.keep_layers import keep_layers
from student_worker.students.lora import LoraStudent, add_adapters

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Built:
    """A student, what to call it, and what it was cut out of (nothing where it was not).

    `base_parameters` are those of the model `base_name` before layers were dropped; `layer_influence` is what each of
    its layers does to the data, where that chose them.
    """

    student: Student
    description: str
    base_name: str = ""
    base_parameters: int | None = None
    dropped_layers: tuple[int, ...] = ()
    layer_influence: tuple[float, ...] = ()


def find_tokenizer(tokenizer: str | None, spec: CausalLMSpec | FixtureSpec, teacher_model: str) -> Any:
    """Return the tokenizer of a run: the one that is named, else the student's base's, else the teacher's.

    A fixture student of a teacher with no tokenizer has none, and can read `.bin` shards alone: None.

    Raises:
        ConfigurationError: it cannot be found or loaded.
    """
    if tokenizer is not None:
        return load_tokenizer(resolve_model(tokenizer))
    if isinstance(spec, CausalLMSpec) and spec.model is not None:
        return load_tokenizer(resolve_model(spec.model, revision=spec.revision))
    try:
        return load_tokenizer(resolve_model(teacher_model))
    except ConfigurationError as error:
        if isinstance(spec, FixtureSpec):
            return None
        raise ConfigurationError(
            f"tokenizer is not named, and the teacher's is not to be had here ({error}); name one by --tokenizer"
        ) from error


def build_student(
    spec: CausalLMSpec | FixtureSpec,
    *,
    tokenizer: Any,
    teacher_model: str,
    teacher_vocabulary_size: int,
    seed: int,
    device: torch.device,
    samples: Iterable[Sample] = (),
) -> Built:
    """Make the student on its device, in float32, with the same weights in every worker.

    `samples` are the first of the run's order, for what is measured on the data.

    Raises:
        ConfigurationError: a model that cannot be found, loaded, cut or adapted.
        DataError: something is to be measured, and there are no samples.
    """
    if isinstance(spec, FixtureSpec):
        width = spec.vocabulary_size or teacher_vocabulary_size
        trainee = FixtureTrainee(width, spec.initial_value)
        trainee.module.to(device)
        return Built(trainee, f"a fixture of {width} logits")
    if spec.config is not None:
        model, dtype = _from_config(spec, seed)
        return Built(_wrap(model, tokenizer, dtype, spec, device), f"{spec.config}, from random weights")
    name = spec.model or teacher_model
    folder = resolve_model(name, revision=spec.revision)
    model, dtype = _from_folder(folder, name, spec)
    depth, before = int(model.config.num_hidden_layers), sum(p.numel() for p in model.parameters())
    influence: tuple[float, ...] = ()
    kept = spec.keep_layers
    if spec.keep_most_important is not None:
        check_keep(spec.keep_most_important, depth)
        influence = block_influence(model.to(device), samples)
        kept = most_important_layers(influence, spec.keep_most_important)
        model.to("cpu")  # adapters are drawn there
        _log.info("layers_measured", influence=[round(value, 6) for value in influence], kept=list(kept))
    description = name
    if kept is not None:
        keep_layers(model, kept)
        description = f"{len(kept)} of the {depth} layers of {name}"
    if spec.lora_r is not None:
        description = f"adapters of rank {spec.lora_r} on {description}"
        adapted = add_adapters(model, spec, seed=seed, base_name=_base_name(name, folder))
        student = _wrap_adapted(adapted, tokenizer, dtype, spec, device)
    else:
        student = _wrap(model, tokenizer, dtype, spec, device)
    if kept is None:
        return Built(student, description)
    dropped = tuple(sorted(set(range(depth)) - set(kept)))
    return Built(student, description, name, before, dropped, influence)


def _wrap(model: Any, tokenizer: Any, dtype: torch.dtype, spec: CausalLMSpec, device: torch.device) -> Student:
    _prepare(model, spec, device)
    return CausalLMStudent(model, tokenizer, export_dtype=dtype, compile_body=spec.torch_compile)


def _wrap_adapted(
    adapted: Any, tokenizer: Any, dtype: torch.dtype, spec: CausalLMSpec, device: torch.device
) -> Student:
    _prepare(adapted.get_base_model(), spec, device)
    merge = spec.lora_export == "merged"
    return LoraStudent(adapted, tokenizer, export_dtype=dtype, compile_body=spec.torch_compile, merge=merge)


def _prepare(model: Any, spec: CausalLMSpec, device: torch.device) -> None:
    if spec.dropout is not None:
        check_dropout_acts(model, spec.dropout)
    model.to(device)
    if spec.gradient_checkpointing:
        checkpoint_activations(model)


def _base_name(name: str, folder: Path) -> str:
    """Return what finds an adapter's base again: the hub's name, else the folder."""
    return str(folder) if name == SMOLLM2 or Path(name).expanduser().exists() else name


def _from_folder(folder: Path, name: str, spec: CausalLMSpec) -> tuple[Any, torch.dtype]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    overrides = dropout_overrides(config, spec.dropout, name) if spec.dropout is not None else {}
    attention = spec.attn_implementation
    model = load_causal_lm(folder, dtype="float32", attn_implementation=attention, config_overrides=overrides)
    return model, _config_dtype(config)


def _from_config(spec: CausalLMSpec, seed: int) -> tuple[Any, torch.dtype]:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(str(spec.config)).expanduser()
    if not path.exists():
        raise ConfigurationError(f"student.config {spec.config!r} does not exist; name a config.json or its folder")
    try:
        config = AutoConfig.from_pretrained(path)
        if spec.dropout is not None:
            config.update(dropout_overrides(config, spec.dropout, str(path)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
                config, dtype=torch.float32, attn_implementation=spec.attn_implementation
            )
    except ConfigurationError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ConfigurationError(f"student.config {str(path)!r} makes no causal language model: {error}") from error
    check_weights_finite(model, str(path))
    return model, _config_dtype(config)


def _config_dtype(config: Any) -> torch.dtype:
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
