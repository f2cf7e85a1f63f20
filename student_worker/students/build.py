"""Makes the student that a recipe describes, the same one in every worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillhouse.errors import ConfigurationError
from stillhouse.models import check_weights_finite, load_causal_lm, load_tokenizer, resolve_model
from student_worker.recipe import CausalLMSpec, FixtureSpec
from student_worker.students.base import Student
from student_worker.students.causal_lm import CausalLMStudent
from student_worker.students.fixture import FixtureTrainee
from student_worker.students.keep_layers import keep_layers


@dataclass(frozen=True, slots=True)
class Built:
    """A student, what to call it, and what it was cut out of (nothing where it was not).

    `base_parameters` are those of the model `base_name` before layers were dropped.
    """

    student: Student
    description: str
    base_name: str = ""
    base_parameters: int | None = None
    dropped_layers: tuple[int, ...] = ()


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
) -> Built:
    """Make the student on its device, in float32, with the same weights in every worker.

    Raises:
        ConfigurationError: a model that cannot be found, loaded or cut.
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
    model = load_causal_lm(folder, dtype="float32", attn_implementation=spec.attn_implementation)
    dtype, depth = _saved_dtype(folder), int(model.config.num_hidden_layers)
    if spec.keep_layers is None:
        return Built(_wrap(model, tokenizer, dtype, spec, device), name)
    before = sum(parameter.numel() for parameter in model.parameters())
    keep_layers(model, spec.keep_layers)
    dropped = tuple(sorted(set(range(depth)) - set(spec.keep_layers)))
    description = f"{len(spec.keep_layers)} of the {depth} layers of {name}"
    return Built(_wrap(model, tokenizer, dtype, spec, device), description, name, before, dropped)


def _wrap(model: Any, tokenizer: Any, dtype: torch.dtype, spec: CausalLMSpec, device: torch.device) -> Student:
    model.to(device)
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return CausalLMStudent(model, tokenizer, export_dtype=dtype)


def _from_config(spec: CausalLMSpec, seed: int) -> tuple[Any, torch.dtype]:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(str(spec.config)).expanduser()
    if not path.exists():
        raise ConfigurationError(f"student.config {spec.config!r} does not exist; name a config.json or its folder")
    try:
        config = AutoConfig.from_pretrained(path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
                config, dtype=torch.float32, attn_implementation=spec.attn_implementation
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"student.config {str(path)!r} makes no causal language model: {error}") from error
    check_weights_finite(model, str(path))
    return model, _config_dtype(config)


def _saved_dtype(folder: Path) -> torch.dtype:
    from transformers import AutoConfig

    return _config_dtype(AutoConfig.from_pretrained(folder))


def _config_dtype(config: Any) -> torch.dtype:
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
