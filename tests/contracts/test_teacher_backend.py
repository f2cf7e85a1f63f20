"""What every teacher backend promises, over each kind that there is, and what is known of ours beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.models import load_causal_lm
from stillhouse.request import All, Sequence
from teacher_service.backends import TeacherBackend
from teacher_service.backends.conformance import BackendConformance
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.backends.transformers import TransformersBackend
from tests.tiny_models import VOCABULARY_SIZE, tiny_model


class TestFixture(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        return FixtureBackend(VOCABULARY_SIZE)


class TestLlama(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        return TransformersBackend(tiny_model("llama"), name="llama", tokens=("a", "b"))


class TestSoftCapAndSlidingWindow(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        return TransformersBackend(tiny_model("gemma2"), name="gemma2")


class TestArchitectureThatIgnoresPackedPositions(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        return TransformersBackend(tiny_model("opt"), name="opt")


class TestLearntPositions(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        return TransformersBackend(tiny_model("gpt2"), name="gpt2", pass_tokens=96)


class TestExperts(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        return TransformersBackend(tiny_model("mixtral"), name="mixtral", pass_tokens=96)


@pytest.mark.filterwarnings("ignore")  # about kernels that are not installed here
class TestRecurrentState(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        return TransformersBackend(tiny_model("mamba"), name="mamba")


class TestHeadThatIsNotUnderstood(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        model = tiny_model("llama")
        plain = model.forward

        def forward(**inputs: Any) -> Any:
            output = plain(**inputs)
            output.logits = output.logits + torch.sin(output.logits)
            return output

        model.forward = forward
        return TransformersBackend(model, name="odd")


class TestDeterministicOneByOne(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        return TransformersBackend(tiny_model("llama"), name="llama", pass_tokens=1)


class TestDeterministicInPasses(BackendConformance):
    def make_backend(self) -> TeacherBackend:
        return TransformersBackend(tiny_model("llama"), name="llama", pass_tokens=96)


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


@pytest.fixture(scope="module", params=["fixture", "llama", "gemma2", "opt"])
def case(request: pytest.FixtureRequest, tiny_llama_folder: Path) -> Case:
    """A fixture; a plain Llama; soft-capping and a sliding window; an architecture that ignores packed positions."""
    match request.param:
        case "fixture":
            return Case(FixtureBackend(VOCABULARY_SIZE), _fixture_logits)
        case "llama":
            return _of_model(load_causal_lm(tiny_llama_folder), "llama")
        case architecture:
            return _of_model(tiny_model(architecture), architecture)


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


def test_segments_matter(case: Case) -> None:
    ids = _ids(20, seed=9)
    whole, cut = case.logits(_all(ids), _all(ids, 8, 12))
    assert (whole - cut).abs().max() > 1e-2


def test_padding_is_counted(case: Case) -> None:
    batch = [_all(_ids(10, seed=12)), _all(_ids(4, seed=13))]
    expected = 0 if isinstance(case.backend, FixtureBackend) else 6
    assert case.backend.forward(batch).padding_tokens == expected


def test_other_weights_have_another_fingerprint() -> None:
    one, other = tiny_model("opt"), tiny_model("opt")
    same = TransformersBackend(one, name="a").describe()
    assert TransformersBackend(other, name="b").describe().fingerprint == same.fingerprint
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert TransformersBackend(other, name="a").describe().fingerprint != same.fingerprint


def test_another_shape_of_passes_has_another_fingerprint() -> None:
    fingerprints = {
        TransformersBackend(tiny_model("llama"), name="a", pass_tokens=tokens).describe().fingerprint
        for tokens in (None, 1, 64, 96)
    }
    assert len(fingerprints) == 4
