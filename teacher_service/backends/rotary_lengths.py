"""Models whose rotary frequencies follow from lengths: from the longest row of a pass, or of any pass before it.

With dynamic NTK scaling and LongRoPE, `transformers` gives all rows of a pass the frequencies of the longest, and
dynamic scaling keeps them until a short pass comes. Then neighbours, and what was asked before, would change an answer
by far more than rounding. Knows nothing of batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class RotaryLengths:
    """What is known of one model's rotary embeddings."""

    def __init__(self, model: Any) -> None:
        self._modules = [m for m in model.modules() if any(map(_follows_length, _each(getattr(m, "rope_type", None))))]
        parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
        borders = [
            part["original_max_position_embeddings"]
            for part in (parameters, *_each(parameters))
            if isinstance(part, dict) and "original_max_position_embeddings" in part
        ]
        borders += [m.original_max_seq_len for m in self._modules if hasattr(m, "original_max_seq_len")]
        self.longest_shared: int | None = min(borders, default=1) if self._modules else None
        """The longest row that may share a pass: up to it all have the same frequencies. None where all may."""

    @property
    def follows_length(self) -> bool:
        """Whether frequencies follow from lengths at all."""
        return bool(self._modules)

    def forget(self) -> None:
        """Make the next pass find no length of an earlier one."""
        for module in self._modules:
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                setattr(module, name, 0)


def _follows_length(rope_type: Any) -> bool:
    return isinstance(rope_type, str) and ("dynamic" in rope_type or rope_type == "longrope")


def _each(kinds: Any) -> Iterable[Any]:
    """Return what stands for the whole model, or for each kind of its layers."""
    return kinds.values() if isinstance(kinds, dict) else (kinds,)
