"""The arithmetic of models, against the formula worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from student_worker.planning.flops import forward_flops_per_token
from student_worker.recipe.schema import CausalLMSpec
from student_worker.students.lora import add_adapters
from tests.tiny_models import VOCABULARY_SIZE, tiny_model

WIDTH, LAYERS, INNER = 32, 2, 64


def by_hand(length: int, *, inner_weights: int) -> int:
    """Return 2 * weights + 4 * width * L by layer, and the head: queries of full width, keys and values of half."""
    attention = 2 * WIDTH * WIDTH + 2 * WIDTH * (WIDTH // 2)
    layer = 2 * (attention + inner_weights) + 4 * WIDTH * length
    return LAYERS * layer + 2 * WIDTH * VOCABULARY_SIZE


@pytest.mark.parametrize("length", [8, 64])
@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_decoder_costs_what_the_formula_says(length: int, tied: bool) -> None:
    model = tiny_model("llama", tied=tied)
    assert forward_flops_per_token(model, length) == by_hand(length, inner_weights=3 * WIDTH * INNER)
    assert forward_flops_per_token(model.config, length) == forward_flops_per_token(model, length)


def test_of_experts_those_are_counted_that_a_token_goes_through() -> None:
    router, chosen = 4 * WIDTH, 2
    expected = by_hand(16, inner_weights=chosen * 3 * WIDTH * INNER + router)
    assert forward_flops_per_token(tiny_model("mixtral"), 16) == expected


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt", "phi", "gemma3", "qwen3", "mamba"])
def test_other_architectures_cost_what_a_real_pass_does(architecture: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model: Any = tiny_model(architecture, attn_implementation="eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(1, 16, dtype=torch.long))
    assert forward_flops_per_token(model, 16) == counter.get_total_flops() // 16


def test_counting_leaves_a_model_and_its_configuration_alone() -> None:
    model = tiny_model("mixtral")
    before = model.config.to_dict()
    forward_flops_per_token(model, 8)
    assert model.config.to_dict() == before
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_what_cannot_be_counted_is_none() -> None:
    assert forward_flops_per_token(torch.nn.Linear(2, 2), 8) is None


def test_adapters_are_counted_on_a_model_without_memory() -> None:
    from transformers import AutoModelForCausalLM

    rank = 4
    spec = CausalLMSpec.model_validate({"model": "base", "kind": "causal_lm", "lora_r": rank})
    plain = tiny_model("llama")
    with torch.device("meta"):
        hollow = AutoModelForCausalLM.from_config(plain.config)  # type: ignore[no-untyped-call]  # untyped
        adapted = add_adapters(hollow, spec, seed=0).get_base_model()
    added = sum(2 * p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    assert forward_flops_per_token(adapted, 8) == (forward_flops_per_token(plain, 8) or 0) + added
