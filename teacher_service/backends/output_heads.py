"""Finds out whether a model's logits are its output head's, and with what scale and soft cap.

Architectures differ in what they do to the head's product: Cohere multiplies it, Granite divides it, Gemma caps it.
The config's names only suggest candidates; values decide, at the model's own hidden states and at planted ones far
from them, so that a cap which the first would never reach is not missed. Knows nothing of batches. Shapes: B batch
rows, L tokens, P positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from stillhouse.payloads import OutputHead

# What configs of transformers call a factor of the logits. Some multiply by it and some divide, whatever its name.
_SCALE_NAMES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier_scale")
_CAP_NAMES = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

# Planted rows are so many times as large as the model's own.
_PLANTED_SIZES = (1.0, 8.0)

# What two ways to the same values may differ by, relative to the largest; float32 rounding is a tenth of it.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# What third-party code raises when it is handed what it does not expect.
_MODEL_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class UnderstoodHead:
    """`base`, called as the model is, gives the `last_hidden_state` that `head` turns into the model's logits."""

    base: Any
    head: OutputHead


def understood_head(model: Any, inputs: dict[str, Any]) -> UnderstoodHead | None:
    """Return how the model's own logits follow from its last hidden states; None where nothing tried explains them.

    Args:
        model: a causal language model in eval mode.
        inputs: the keyword arguments of a pass over a few tokens.
    """
    module = model.get_output_embeddings()
    weight, bias = parameters_of(module)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        return None  # no head of its own, or one whose weights are packed
    for base in _bases(model):
        try:
            hidden_BLD = base(**inputs).last_hidden_state
            looked_at = [(hidden_BLD, model(**inputs).logits)]
            for size in _PLANTED_SIZES:
                planted_BLD = _planted(hidden_BLD, size)
                looked_at.append((planted_BLD, _logits_of_planted(model, planted_BLD, inputs)))
        except _MODEL_ERRORS:
            continue
        for scale, soft_cap in _suggestions(model.config):
            head = OutputHead(weight, bias, scale, soft_cap)
            if all(agree(_rebuilt(head, hidden), logits) for hidden, logits in looked_at):
                return UnderstoodHead(base, head)
    return None


@torch.inference_mode(mode=False)  # in which a tensor of several processes cannot be gathered
@torch.no_grad()
def parameters_of(module: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return a module's weight and bias, where it has them, from wherever they lie."""
    found = [getattr(module, name, None) for name in ("weight", "bias")]
    if any(parameter is not None and parameter.is_meta for parameter in found):
        # Offloaded: they are loaded for each use, and stay here from now on.
        from accelerate.utils import align_module_device

        with align_module_device(module):
            found = [None if p is None else p.clone() for p in (getattr(module, n, None) for n in ("weight", "bias"))]
    weight, bias = [p.full_tensor() if isinstance(p, DTensor) else p for p in found]
    return None if weight is None else weight.detach(), None if bias is None else bias.detach()


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two ways gave the same values but for the rounding of `theirs`; anything not finite is not."""
    if ours.shape != theirs.shape:
        return False
    theirs = theirs.to(ours.device)
    difference = (ours.float() - theirs.float()).abs().max()
    return bool(difference <= _TOLERANCE[theirs.dtype] * theirs.float().abs().max())


def _rebuilt(head: OutputHead, hidden_BLD: Tensor) -> Tensor:
    return head.logits(hidden_BLD.flatten(0, 1)).view(*hidden_BLD.shape[:2], -1)


def _planted(hidden_BLD: Tensor, size: float) -> Tensor:
    """Return random hidden states of the shape of others, and of `size` times their root mean square."""
    noise = torch.randn(hidden_BLD.shape, generator=torch.Generator().manual_seed(0))
    return (noise.to(hidden_BLD.device) * hidden_BLD.float().square().mean().sqrt() * size).to(hidden_BLD.dtype)


def _logits_of_planted(model: Any, planted_BLD: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Return what the model makes of hidden states that its base never gave."""

    def plant(_module: Any, _arguments: Any, output: Any) -> Any:
        output.last_hidden_state = planted_BLD
        return output

    with ExitStack() as stack:
        for base in _bases(model):
            stack.callback(base.register_forward_hook(plant).remove)
        logits: Tensor = model(**inputs).logits
        return logits


def _bases(model: Any) -> list[Any]:
    """Return what may give the last hidden states: OPT calls the decoder within its base, and never the base."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return [
        part for part in {id(part): part for part in (model.base_model, decoder)}.values() if part not in (None, model)
    ]


def _suggestions(config: Any) -> Iterator[tuple[float, float | None]]:
    """Yield scales and caps worth trying: what the config names first, then none."""
    configs = list({id(part): part for part in (config.get_text_config(), config)}.values())
    scales: dict[float, None] = {}
    for value in _numbers(configs, _SCALE_NAMES):
        scales |= {value: None, 1 / value: None}
    for part in configs:
        # MiniCPM divides the hidden states by how much wider they are than its smallest model's.
        narrow, wide = (getattr(part, name, None) for name in ("dim_model_base", "hidden_size"))
        if narrow and wide:
            scales |= {narrow / wide: None}
    caps: dict[float | None, None] = dict.fromkeys(_numbers(configs, _CAP_NAMES))
    yield from product([*scales, 1.0], [*caps, None])


def _numbers(configs: list[Any], names: tuple[str, ...]) -> list[float]:
    values = [getattr(config, name, None) for config in configs for name in names]
    return [float(value) for value in values if isinstance(value, int | float) and value > 0]
