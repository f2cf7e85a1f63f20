"""How large a model is, and what it computes for a token, told by its configuration before any weight is loaded.

Knows nothing of recipes or runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillhouse.errors import ConfigurationError
from student_worker.planning.flops import forward_flops_per_token


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Counts of one model; a tied weight counts once.

    `flops_per_token` is what `flops.forward_flops_per_token` counts; None where it cannot.
    """

    parameters: int
    trained_parameters: int
    flops_per_token: int | None


def hollow_model(path: Path) -> Any:
    """Return the model of a configuration (a config.json or its folder) without weights: every tensor is on `meta`.

    Raises:
        ConfigurationError: it makes no causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
                config, dtype=torch.float32
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ConfigurationError(f"{str(path)!r} makes no causal language model: {error}") from error


def measure(model: nn.Module, block_tokens: int) -> ModelSize:
    """Return a model's size; `model` may be hollow, and its work is counted over a block of `block_tokens` tokens."""
    parameters = list(model.parameters())
    return ModelSize(
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        forward_flops_per_token(model, block_tokens),
    )
