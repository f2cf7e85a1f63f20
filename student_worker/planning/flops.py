"""How much arithmetic one token of a language model costs, in a forward pass.

Counted by torch's own counter on a model without memory (the meta device), so that every architecture is counted as
transformers computes it: products of matrices and attention, a multiplication and an addition being two operations.
For a dense decoder that is

    2 * (weights multiplied with: all but embeddings looked up, norms and biases) + 4 * layers * heads * head_dim * L

for a token in a sequence of L, attention being counted over the whole square, as by kernels that do not skip the
masked half; of experts those that a token goes through. A training step costs about three times as much. Knows
nothing of runs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def forward_flops_per_token(model: Any, sequence_length: int) -> int | None:
    """Return the FLOPs of a forward pass by token of such a sequence, None where they cannot be counted.

    Args:
        model: a causal language model of transformers on the meta device, with adapters or not (it is not to be used
            for anything else afterwards); or one with weights, or a configuration, of which such a model is made.
        sequence_length: L.
    """
    is_hollow = isinstance(model, nn.Module) and all(parameter.is_meta for parameter in model.parameters())
    hollow = model if is_hollow else _hollow(getattr(model, "config", model))
    return None if hollow is None else _count(hollow, sequence_length)


def _hollow(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config))  # type: ignore[no-untyped-call]  # untyped
    except (ValueError, TypeError, AttributeError, ImportError, RuntimeError):
        return None


def _count(model: Any, length: int) -> int | None:
    from torch.utils.flop_counter import FlopCounterMode

    # Kernels whose shapes follow from no value, since there are none. transformers has no other way to the second.
    model.eval().set_attn_implementation("eager")
    model.config._experts_implementation = "batched_mm"  # noqa: SLF001 - see above
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    mask = torch.zeros(1, 1, length, length, device="meta")
    # Either spares the search for documents in the positions, which looks at values; some models take only one.
    for arguments in ({"use_cache": True}, {"use_cache": False, "attention_mask": mask}):
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(input_ids=ids, **arguments)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            continue
        return int(counter.get_total_flops()) // length
    return None
