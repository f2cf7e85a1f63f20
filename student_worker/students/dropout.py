"""Dropout probabilities in a model's configuration: which keys they are, and that one acts."""

from __future__ import annotations

from typing import Any

import torch

from stillhouse.errors import ConfigurationError

# Heads for classification that no language model runs, and layers skipped whole.
_ELSEWHERE = ("classifier", "summary", "layerdrop")

PROBE_LENGTH = 64
PROBED_FROM = 0.01
"""Below this nothing may be dropped among the probe's positions, and silence would prove nothing."""


def dropout_overrides(config: Any, probability: float, name: str) -> dict[str, float]:
    """Return what sets every dropout probability of a transformers configuration.

    Raises:
        ConfigurationError: it has none.
    """
    keys = [
        key
        for key, value in config.to_dict().items()
        if ("dropout" in key or key.endswith("pdrop"))
        and isinstance(value, int | float)
        and not any(word in key for word in _ELSEWHERE)
    ]
    if not keys:
        raise ConfigurationError(
            f"student.dropout {probability} has no effect: the configuration of {name} "
            f"({config.model_type}) has no dropout; leave it out"
        )
    return dict.fromkeys(keys, probability)


@torch.no_grad()
def check_dropout_acts(model: Any, probability: float) -> None:
    """Check that two passes in training differ, as dropout makes them.

    Raises:
        ConfigurationError: they are equal: the model does not look at what its configuration says.
    """
    if probability < PROBED_FROM:
        return
    length = min(PROBE_LENGTH, int(getattr(model.config, "max_position_embeddings", None) or PROBE_LENGTH))
    ids = torch.arange(length)[None] % int(model.get_input_embeddings().weight.shape[0])
    training = model.training
    model.train()
    passes = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            passes.append(model(input_ids=ids, use_cache=False).logits)
    model.train(training)
    if torch.equal(*passes):
        raise ConfigurationError(
            f"student.dropout {probability} has no effect: {type(model).__name__} drops nothing in training; "
            "leave it out"
        )
