"""Which layers of a model do most on a run's own data: Block Influence.

A layer's influence is 1 - E[cos(x, y)] of the hidden state x that enters it and y that leaves it, at the same
position (ShortGPT, arXiv 2403.03853, equation 1). A layer that hands on what it was given has none. Knows nothing of
where samples come from; the same model, samples and kind of machine give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.data import Sample
from stillhouse.errors import ConfigurationError, DataError
from stillhouse.vocabulary import check_token_ids
from student_worker.batches import make_batch
from student_worker.students.keep_layers import find_stack

MEASURED_SAMPLES = 16
"""Samples looked at, at most: the first of the run's order."""

MEASURED_TOKENS = 16_384
"""Tokens looked at, at most: what bounds the time where samples are long."""


def most_important_layers(influence: tuple[float, ...], keep: int) -> tuple[int, ...]:
    """Return the `keep` layers of highest influence, rising; of two that are equal the lower."""
    ranked = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return tuple(sorted(ranked[:keep]))


def check_keep(keep: int, depth: int) -> None:
    """Check how many layers are to stay, before anything is measured.

    Raises:
        ConfigurationError: not fewer than there are.
    """
    if keep >= depth:
        raise ConfigurationError(
            f"keep_most_important {keep} drops none of the model's {depth} layers; give a number from 1 to {depth - 1}"
        )


@torch.no_grad()
def block_influence(model: Any, samples: Iterable[Sample]) -> tuple[float, ...]:
    """Return each layer's influence, over the positions of the first samples, each sample by itself.

    At most `MEASURED_SAMPLES` samples and `MEASURED_TOKENS` tokens are looked at, but never less than one sample.

    Raises:
        ConfigurationError: a model whose layers cannot be told.
        DataError: there is no sample, or one with an id that the model has not.
    """
    layers = find_stack(model, int(model.config.num_hidden_layers), "keep_most_important")[2]
    meter = _Meter(len(layers))
    hooks = [layer.register_forward_hook(meter.hook(index), with_kwargs=True) for index, layer in enumerate(layers)]
    training = model.training
    model.eval()
    device, tokens, seen = next(model.parameters()).device, 0, 0
    try:
        for sample in samples:
            tokens, seen = tokens + len(sample.token_ids), seen + 1
            if seen > MEASURED_SAMPLES or (seen > 1 and tokens > MEASURED_TOKENS):
                break
            check_token_ids(int(sample.token_ids.max()), model.get_input_embeddings().weight.shape[0])
            batch = make_batch([sample]).to(device)
            model.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return meter.influence()


class _Meter:
    """Adds up cosines, in float64."""

    def __init__(self, depth: int) -> None:
        self._sums = [0.0] * depth
        self._positions = [0] * depth

    def hook(self, index: int) -> Any:
        def measure(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before: Tensor = args[0] if args else kwargs["hidden_states"]
            after: Tensor = output[0] if isinstance(output, tuple) else output
            cosines = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            # A state of zeros (the embedding of padding) has no direction; one that is handed on has not changed.
            cosines = cosines.masked_fill((before == after).all(-1), 1.0)
            self._sums[index] += float(cosines.sum())
            self._positions[index] += cosines.numel()

        return measure

    def influence(self) -> tuple[float, ...]:
        if not all(self._positions):
            raise DataError("keep_most_important: the data holds no sample to measure the layers on")
        return tuple(1 - total / count for total, count in zip(self._sums, self._positions, strict=True))
