"""Where rotary frequencies follow from lengths, neither a longer neighbour nor an earlier batch changes an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.request import All, Sequence
from teacher_service.backends.rotary_lengths import RotaryLengths
from teacher_service.backends.transformers import TransformersBackend
from tests.tiny_models import tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "longrope": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16, "factor": 4.0,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
}  # fmt: skip
LENGTHS = (10, 14, 30, 50, 80)


def _model(kind: str) -> Any:
    return tiny_model(
        "llama", rope_parameters=dict(KINDS[kind]), max_position_embeddings=64 if kind == "longrope" else 24
    )


def _sequence(length: int) -> Sequence:
    return Sequence(tuple(range(3, 3 + length)), (), All())


def _as_if_first(kind: str, length: int) -> Tensor:
    """What a model says that has never seen another sequence."""
    with torch.inference_mode():
        ids = torch.tensor([_sequence(length).token_ids])
        logits: Tensor = _model(kind)(input_ids=ids, use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("pass_tokens", [None, 1, 96], ids=["throughput", "one by one", "in passes"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_lengths_of_others_change_nothing(kind: str, pass_tokens: int | None) -> None:
    backend = TransformersBackend(_model(kind), name=kind, pass_tokens=pass_tokens)
    for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2,), (4,), (3,), (1,), (0, 4)):
        asked = [LENGTHS[index] for index in order]
        for length, rows in zip(asked, backend.forward([_sequence(length) for length in asked]).rows, strict=True):
            torch.testing.assert_close(backend.head(rows), _as_if_first(kind, length), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_long_segment_does_not_change_a_short_one(kind: str) -> None:
    backend = TransformersBackend(_model(kind), name=kind)
    packed = Sequence(_sequence(50).token_ids + _sequence(10).token_ids, (50, 10), All())
    (rows,) = backend.forward([packed]).rows
    torch.testing.assert_close(backend.head(rows)[50:], _as_if_first(kind, 10), atol=1e-3, rtol=0)


def test_other_models_share_their_passes() -> None:
    assert RotaryLengths(tiny_model("llama")).longest_shared is None
    assert RotaryLengths(_model("longrope")).longest_shared == 16
    backend = TransformersBackend(_model("longrope"), name="tiny")
    assert backend.padded_tokens([10, 14]) == 28
    assert backend.padded_tokens([10, 14, 30]) == 28 + 30
