"""A student and its teacher as their configurations describe them: sizes, without a weight.

A student's folder is fetched where it isn't here, since the run needs it; a teacher that isn't here stays unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillhouse.errors import ConfigurationError
from stillhouse.models import SMOLLM2, resolve_model
from stillhouse.request import TeacherDescription
from student_worker.planning.model_size import ModelSize, hollow_model, measure
from student_worker.planning.same_weights import check_not_its_teacher
from student_worker.recipe.schema import CausalLMSpec, FixtureSpec
from student_worker.students.importance import check_keep
from student_worker.students.keep_layers import keep_layers
from student_worker.students.lora import add_adapters


@dataclass(frozen=True, slots=True)
class Sketch:
    """A student before it is made.

    `vocabulary_size` is its head's width, `export_bytes` what its export takes, `max_positions` the longest sequence
    that its configuration knows of (None: any).
    """

    size: ModelSize
    vocabulary_size: int
    export_bytes: int
    max_positions: int | None = None


def sketch_student(
    spec: CausalLMSpec | FixtureSpec, teacher: TeacherDescription, *, block_tokens: int, seed: int
) -> Sketch:
    """Return the sketch of what a recipe describes.

    Raises:
        ConfigurationError: a model that cannot be found, cut or adapted, or one that is its own teacher.
    """
    if isinstance(spec, FixtureSpec):
        width = spec.vocabulary_size or teacher.vocabulary_size
        return Sketch(ModelSize(width, width, 0), width, 4 * width)
    if spec.config is not None:
        path = Path(spec.config).expanduser()
        if not path.exists():
            raise ConfigurationError(f"student.config {spec.config!r} does not exist; name a config.json or its folder")
    else:
        name = spec.model or teacher.model
        path = resolve_model(name, revision=spec.revision)
        kept = spec.keep_most_important if spec.keep_layers is None else len(spec.keep_layers)
        check_not_its_teacher(path, teacher, kept_layers=kept, name=name)
    model = hollow_model(path)
    if spec.attn_implementation is not None:
        _check_attention(model, spec.attn_implementation)
    depth, item_bytes = int(model.config.num_hidden_layers), _item_bytes(model.config)
    if spec.keep_layers is not None:
        keep_layers(model, spec.keep_layers)
    elif spec.keep_most_important is not None:
        check_keep(spec.keep_most_important, depth)
        # Which of them is measured later; how many is what counts here.
        keep_layers(model, tuple(range(spec.keep_most_important)))
    vocabulary_size = int(model.get_output_embeddings().weight.shape[0])
    whole = sum(parameter.numel() for parameter in model.parameters())
    if spec.lora_r is not None:
        add_adapters(model, spec, seed=seed)
    size = measure(model, block_tokens)
    adapter_alone = spec.lora_r is not None and spec.lora_export == "adapter"
    exported = 4 * size.trained_parameters if adapter_alone else item_bytes * whole
    return Sketch(size, vocabulary_size, exported, getattr(model.config, "max_position_embeddings", None))


def _check_attention(model: Any, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(
            f"student.attn_implementation {name!r} cannot be used with this model here: {' '.join(str(error).split())}"
        ) from error


def sketch_teacher(teacher: TeacherDescription, *, block_tokens: int) -> ModelSize | None:
    """Return the size of a teacher, None where its name leads to no model from here."""
    try:
        folder = _folder_here(teacher.model)
        return None if folder is None else measure(hollow_model(folder), block_tokens)
    except ConfigurationError:
        return None


def _folder_here(name: str) -> Path | None:
    """Return the folder of a model's configuration, None where it isn't here: nothing is fetched only to be counted."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name == SMOLLM2 or Path(name).expanduser().exists():
        return resolve_model(name)
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _item_bytes(config: Any) -> int:
    """Return the bytes of one exported parameter: weights keep the dtype that they came in."""
    dtype = getattr(config, "dtype", None)
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    return dtype.itemsize if isinstance(dtype, torch.dtype) else 4
