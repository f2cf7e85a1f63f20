"""How a transformers backend finds out what kind of model it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.errors import ConfigurationError
from stillhouse.models import load_causal_lm
from stillhouse.request import All, Sequence
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.backends.transformers import TransformersBackend
from tests.tiny_models import tiny_model


def test_weights_that_give_no_finite_logits_are_refused(tiny_llama_folder: Path) -> None:
    model: Any = load_causal_lm(tiny_llama_folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(ConfigurationError, match="'tiny' gives logits that are not finite"):
        TransformersBackend(model, name="tiny")


@pytest.mark.parametrize(
    ("architecture", "config", "reason"),
    [
        ("llama", {"vocab_size": 5}, "IndexError: index out of range"),
        ("gpt2", {"max_position_embeddings": 4}, "IndexError: index out of range"),
        ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 8}, "RuntimeError: selected index k out of range"),
    ],
)
def test_a_model_that_cannot_run_is_refused_with_its_name(
    architecture: str, config: dict[str, Any], reason: str
) -> None:
    model = tiny_model(architecture, **config)
    with pytest.raises(ConfigurationError, match=f"'odd' cannot be served: .* failed with {reason}.*config.json"):
        TransformersBackend(model, name="odd")


def test_bfloat16_agrees_to_its_precision(tiny_llama_folder: Path) -> None:
    ids = Sequence(tuple(range(40)), (), All())
    answers = []
    for dtype in ("float32", "bfloat16"):
        backend = TransformersBackend(load_causal_lm(tiny_llama_folder, dtype=dtype), name="tiny")
        assert backend.describe().compute_dtype == dtype
        answers.append(backend.head(backend.forward([ids]).rows[0]).float())
    # A bfloat16 holds 8 bits: answers of size 5 agree to a few per cent of it.
    assert (answers[0] - answers[1]).abs().max() < 0.05 * answers[0].abs().max()


def test_fixture_001_argmax_is_the_last_token() -> None:
    backend = FixtureBackend(10)
    logits = backend.head(backend.forward([Sequence((4, 7, 2))]).rows[0])
    assert logits.argmax(dim=1).tolist() == [2]
    assert logits.max() == 10.0
