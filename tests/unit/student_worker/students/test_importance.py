"""Block Influence: measured on the run's samples, it tells the layer that does nothing from those that do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from stillhouse.data import Sample
from stillhouse.errors import ConfigurationError, DataError
from student_worker.students.importance import (
    MEASURED_SAMPLES,
    MEASURED_TOKENS,
    block_influence,
    check_keep,
    most_important_layers,
)
from tests.tiny_models import VOCABULARY_SIZE, tiny_model

MakeSample = Callable[..., Sample]


@pytest.fixture
def samples(make_sample: MakeSample) -> list[Sample]:
    return [make_sample([1 + (11 * i + 5 * j) % 90 for j in range(9 + i)], (4, 5 + i)) for i in range(4)]


def model_with_idle_layers(*idle: int) -> Any:
    """Return a Llama of four layers, of which some add nothing to what they are given."""
    model = tiny_model("llama", num_hidden_layers=4)
    for index in idle:
        layer = model.model.layers[index]
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


@pytest.mark.parametrize("idle", [0, 1, 2, 3])
def test_a_layer_that_does_nothing_is_the_one_dropped_wherever_it_stands(idle: int, samples: list[Sample]) -> None:
    influence = block_influence(model_with_idle_layers(idle), samples)
    assert influence[idle] == pytest.approx(0, abs=1e-6)
    assert min(influence[:idle] + influence[idle + 1 :]) > 1e-3
    assert most_important_layers(influence, 3) == tuple(layer for layer in range(4) if layer != idle)


def test_it_is_one_minus_the_mean_cosine_of_what_enters_and_leaves(samples: list[Sample]) -> None:
    model = model_with_idle_layers()
    cosines = []
    for sample in samples:
        ids = torch.from_numpy(sample.token_ids.astype("int64"))[None]
        positions = torch.cat([torch.arange(length) for length in sample.segment_lengths])[None]
        with torch.no_grad():
            # The last of these is normalised; the layer's own output is what enters the norm.
            states = model(ids, position_ids=positions, use_cache=False, output_hidden_states=True).hidden_states
        pairs = pairwise(states[:-1])
        cosines.append(torch.stack([torch.cosine_similarity(x, y, dim=-1)[0] for x, y in pairs]))
    expected = 1 - torch.cat(cosines, 1).mean(1)
    torch.testing.assert_close(torch.tensor(block_influence(model, samples)[:3]), expected, rtol=1e-4, atol=1e-6)


def test_it_is_the_same_each_time_and_leaves_the_model_as_it_was(samples: list[Sample]) -> None:
    model = model_with_idle_layers().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert block_influence(model, samples) == block_influence(model, samples)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model.model.layers)


@pytest.mark.parametrize(("length", "expected"), [(8, MEASURED_SAMPLES), (MEASURED_TOKENS // 4, 4)])
def test_what_it_looks_at_is_bounded(make_sample: MakeSample, length: int, expected: int) -> None:
    taken = []

    def endless() -> Iterator[Sample]:
        while True:
            taken.append(length)
            yield make_sample([1] * length)

    class Body(torch.nn.Module):
        """Layers without attention, so that long samples cost nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.config = torch.nn.Module()
            self.config.num_hidden_layers = 2  # type: ignore[assignment]  # stands in for a configuration
            self.layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))
            self.base_model = self.forward

        def get_input_embeddings(self) -> Any:
            return torch.nn.Embedding(8, 2)

        def forward(self, input_ids: torch.Tensor, **_: Any) -> None:
            seen.append(input_ids.numel())
            states = torch.ones(1, 1, 2)
            for layer in self.layers:
                states = layer(states)

    seen: list[int] = []
    block_influence(Body(), endless())
    assert len(seen) == expected
    assert sum(seen) <= MEASURED_TOKENS
    assert len(taken) <= expected + 1


def test_a_position_that_is_all_zeros_counts_as_unchanged_where_it_is(make_sample: MakeSample) -> None:
    """The embedding of a padding id is zero, and a layer that does nothing leaves it so."""
    assert block_influence(model_with_idle_layers(0), [make_sample([0, 5, 9, 0])])[0] == pytest.approx(0, abs=1e-6)


def test_of_equal_layers_the_lower_stays() -> None:
    assert most_important_layers((0.5, 0.1, 0.5, 0.5), 2) == (0, 2)


@pytest.mark.parametrize("keep", [4, 5, 400])
def test_a_number_that_drops_nothing_is_refused_with_the_depth(keep: int) -> None:
    with pytest.raises(ConfigurationError, match=f"keep_most_important {keep} drops none of the model's 4 layers"):
        check_keep(keep, 4)
    check_keep(3, 4)


def test_no_data_and_foreign_ids_are_named(make_sample: MakeSample) -> None:
    with pytest.raises(DataError, match="keep_most_important"):
        block_influence(model_with_idle_layers(), [])
    with pytest.raises(DataError, match=f"token id {VOCABULARY_SIZE}"):
        block_influence(model_with_idle_layers(), [make_sample([1, VOCABULARY_SIZE, 2])])


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neox", "gemma3", "mixtral", "phi"])
def test_it_is_measured_on_other_architectures_too(architecture: str, samples: list[Sample]) -> None:
    influence = block_influence(tiny_model(architecture), samples)
    assert len(influence) == 2
    assert all(0 < value < 2 for value in influence)
