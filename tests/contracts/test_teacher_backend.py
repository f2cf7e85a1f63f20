"""What every teacher backend promises, over each kind that there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.models import load_causal_lm
from stillhouse.request import All, Explicit, From, Last, Sequence
from teacher_service.backends import TeacherBackend
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.backends.transformers import TransformersBackend

VOCABULARY_SIZE = 97

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


@dataclass(frozen=True)
class Case:
    """A backend, and what the model in it says when it is asked directly: ids -> logits `[L, V]`."""

    backend: TeacherBackend
    own_logits: Callable[[list[int]], Tensor]
    tolerance: float = 1e-3

    def logits(self, *sequences: Sequence) -> list[Tensor]:
        """All logits `[P, V]` of each sequence, in one batch."""
        return [self.backend.head(rows) for rows in self.backend.forward(sequences).rows]


def _of_model(model: Any, name: str) -> Case:
    def own_logits(ids: list[int]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return logits

    return Case(TransformersBackend(model, name=name), own_logits)


def _fixture_logits(ids: list[int]) -> Tensor:
    return 10.0 * torch.nn.functional.one_hot(torch.tensor([*ids[1:], ids[-1]]), VOCABULARY_SIZE).float()


def _random_model(architecture: str, **config: Any) -> Any:
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(3)
        settings = getattr(transformers, f"{architecture}Config")(**_SMALL, **config)
        return getattr(transformers, f"{architecture}ForCausalLM")(settings).eval()


@pytest.fixture(scope="module", params=["fixture", "llama", "gemma2", "opt"])
def case(request: pytest.FixtureRequest, tiny_llama_folder: Path) -> Case:
    """A fixture; a plain Llama; soft-capping and a sliding window; an architecture that ignores packed positions."""
    match request.param:
        case "fixture":
            return Case(FixtureBackend(VOCABULARY_SIZE), _fixture_logits)
        case "llama":
            return _of_model(load_causal_lm(tiny_llama_folder), "llama")
        case "gemma2":
            model = _random_model(
                "Gemma2", head_dim=8, num_key_value_heads=2, intermediate_size=64, sliding_window=4,
                initializer_range=0.3, final_logit_softcapping=5.0,
            )  # fmt: skip
            return _of_model(model, "gemma2")
        case _:
            return _of_model(_random_model("OPT", ffn_dim=64, word_embed_proj_dim=32, init_std=0.3), "opt")


def _ids(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY_SIZE, (length,), generator=generator).tolist()


def _all(ids: list[int], *segment_lengths: int) -> Sequence:
    return Sequence(tuple(ids), segment_lengths, All())


def test_teacher_001_logits_equal_the_models_own(case: Case) -> None:
    ids = _ids(23, seed=1)
    (logits,) = case.logits(_all(ids))
    torch.testing.assert_close(logits, case.own_logits(ids), atol=1e-3, rtol=0)


def test_teacher_002_the_same_code_path_gives_the_same_logits(case: Case) -> None:
    ids = _ids(23, seed=1)
    first, second = case.logits(_all(ids))[0], case.logits(_all(ids))[0]
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


def test_padding_and_neighbours_hardly_change_an_answer(case: Case) -> None:
    ids = _ids(9, seed=2)
    (alone,) = case.logits(_all(ids))
    batch = [_all(_ids(40, seed=3)), _all(ids), _all(_ids(1, seed=4))]
    torch.testing.assert_close(case.logits(*batch)[1], alone, atol=1e-3, rtol=0)


def test_a_segment_is_answered_as_if_it_stood_alone(case: Case) -> None:
    first, second, third = _ids(7, seed=5), _ids(1, seed=6), _ids(13, seed=7)
    packed = _all(first + second + third, 7, 1, 13)
    neighbour = _all(_ids(30, seed=8), 10, 20)
    logits = case.logits(packed, neighbour)[0]
    torch.testing.assert_close(logits[:7], case.own_logits(first), atol=1e-3, rtol=0)
    torch.testing.assert_close(logits[7:8], case.own_logits(second), atol=1e-3, rtol=0)
    torch.testing.assert_close(logits[8:], case.own_logits(third), atol=1e-3, rtol=0)


def test_segments_matter(case: Case) -> None:
    ids = _ids(20, seed=9)
    whole, cut = case.logits(_all(ids), _all(ids, 8, 12))
    assert (whole - cut).abs().max() > 1e-2


def test_only_the_positions_asked_for_are_answered(case: Case) -> None:
    ids = tuple(_ids(12, seed=10))
    whole, last, tail, some = case.logits(
        Sequence(ids, (), All()),
        Sequence(ids, (), Last()),
        Sequence(ids, (), From(9)),
        Sequence(ids, (), Explicit((0, 5))),
    )
    torch.testing.assert_close(last, whole[-1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(tail, whole[9:], atol=1e-5, rtol=0)
    torch.testing.assert_close(some, whole[[0, 5]], atol=1e-5, rtol=0)


def test_the_head_gives_the_same_rows_in_chunks(case: Case) -> None:
    rows = case.backend.forward([_all(_ids(20, seed=11))]).rows[0]
    whole = case.backend.head(rows)
    in_chunks = torch.cat([case.backend.head(chunk) for chunk in torch.split(rows, 3)])
    torch.testing.assert_close(in_chunks, whole, atol=1e-3, rtol=0)


def test_padding_is_counted(case: Case) -> None:
    batch = [_all(_ids(10, seed=12)), _all(_ids(4, seed=13))]
    expected = 0 if isinstance(case.backend, FixtureBackend) else 6
    assert case.backend.forward(batch).padding_tokens == expected


def test_a_description_says_what_an_answer_depends_on(case: Case) -> None:
    description = case.backend.describe()
    (logits,) = case.logits(_all(_ids(5, seed=14)))
    assert logits.shape[1] == description.vocabulary_size
    assert logits.dtype.is_floating_point
    assert len(description.fingerprint) == len(description.weights_fingerprint) == 32
    rows = case.backend.forward([_all(_ids(5, seed=14))]).rows[0]
    assert description.hidden_size in (0, rows.shape[1])


def test_other_weights_have_another_fingerprint() -> None:
    one, other = _random_model("OPT", ffn_dim=64), _random_model("OPT", ffn_dim=64)
    same = TransformersBackend(one, name="a").describe()
    assert TransformersBackend(other, name="b").describe().fingerprint == same.fingerprint
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert TransformersBackend(other, name="a").describe().fingerprint != same.fingerprint
