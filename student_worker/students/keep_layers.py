"""A smaller model made from a larger one by keeping some of its layers.

Embeddings, norms and head stay; the kept layers keep their weights and their order, and are numbered anew. Whatever
the configuration says per layer (`layer_types` and the like) shrinks with them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from stillhouse.errors import ConfigurationError


def keep_layers(model: nn.Module, layers: tuple[int, ...]) -> None:
    """Cut a transformers causal language model down to some of its layers, in place.

    Raises:
        ConfigurationError: a layer that the model doesn't have, or a model whose layers cannot be told.
    """
    config: Any = model.config
    depth = int(config.num_hidden_layers)
    if layers[-1] >= depth:
        raise ConfigurationError(f"keep_layers names layer {layers[-1]}, but the model has layers 0 to {depth - 1}")
    parent, name, stack = find_stack(model, depth, "keep_layers")
    setattr(parent, name, nn.ModuleList(stack[index] for index in layers))
    for index, layer in enumerate(getattr(parent, name)):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == depth:
            setattr(config, key, type(value)(value[index] for index in layers))
    config.num_hidden_layers = len(layers)


def find_stack(model: nn.Module, depth: int, key: str) -> tuple[nn.Module, str, nn.ModuleList]:
    """Find the one list of decoder layers, and where it hangs.

    Raises:
        ConfigurationError: there is none, or more than one; the message begins with the recipe's `key`.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(found) != 1:
        raise ConfigurationError(
            f"{key}: {type(model).__name__} has {len(found)} lists of {depth} layers where one is expected; "
            "give the student by `model` or `config` instead"
        )
    return found[0]
