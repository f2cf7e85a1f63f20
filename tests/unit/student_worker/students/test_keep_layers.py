"""A smaller model made by keeping layers: weights, configuration and layer numbers all follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import ConfigurationError
from student_worker.recipe.layer_numbers import parse_layers
from student_worker.students.keep_layers import keep_layers


@pytest.fixture
def model() -> Any:
    """A Qwen2 of four layers: its configuration has a list with one entry a layer, and attention knows its number."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model: Any = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            use_sliding_window=True,
            sliding_window=8,
            layer_types=["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
        )
    )
    return model.eval()


@pytest.mark.parametrize(
    ("text", "layers"), [("3", (3,)), ("0-2", (0, 1, 2)), ("0-1, 4 ,6-7", (0, 1, 4, 6, 7)), ("5-5", (5,))]
)
def test_layer_numbers_are_read_as_people_write_them(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text) == layers


@given(st.sets(st.integers(0, 60), min_size=1))
def test_any_rising_list_is_read_back(layers: set[int]) -> None:
    assert parse_layers(",".join(map(str, sorted(layers)))) == tuple(sorted(layers))


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "3-1", "2,1", "1,1", "0-2,2"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="keep_layers"):
        parse_layers(text)


def test_kept_layers_keep_their_weights_and_are_numbered_anew(model: Any) -> None:
    kept = [{name: tensor.clone() for name, tensor in model.model.layers[i].state_dict().items()} for i in (0, 3)]
    keep_layers(model, (0, 3))
    assert model.config.num_hidden_layers == len(model.model.layers) == 2
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    for layer, weights in zip(model.model.layers, kept, strict=True):
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, weights[name])


def test_the_smaller_model_generates_with_its_cache_as_without(model: Any) -> None:
    keep_layers(model, (1, 2))
    ids = torch.tensor([[1, 2, 3, 4]])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


def test_a_layer_that_is_not_there_is_named(model: Any) -> None:
    with pytest.raises(ConfigurationError, match="layer 4, but the model has layers 0 to 3"):
        keep_layers(model, (0, 4))
