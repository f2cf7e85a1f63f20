"""The published suite over every kind of student that we have, the one in the documentation, and planted faults.

A suite that let one of the faults pass would be no suite: each names the tests that find it, and every test of the
suite is found to be needed by some fault.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence as SequenceOf
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stillhouse.fixtures import FixtureStudent
from stillhouse.providers import StudentLogitsProvider, TokenBatch
from student_worker.batches import Batch
from student_worker.recipe.schema import CausalLMSpec
from student_worker.students.base import ModelCard
from student_worker.students.causal_lm import CausalLMStudent, checkpoint_activations
from student_worker.students.conformance import StudentConformance
from student_worker.students.fixture import FixtureTrainee
from student_worker.students.keep_layers import keep_layers
from student_worker.students.lora import LoraStudent, add_adapters
from tests.tiny_models import tiny_model

V = 17
PAGE = Path(__file__).parents[2] / "docs" / "students.md"
SUITE = [name.removeprefix("test_") for name in dir(StudentConformance) if name.startswith("test_")]


def _example() -> dict[str, Any]:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    namespace: dict[str, Any] = {}
    exec("\n".join(blocks), namespace)  # noqa: S102 - our own page
    return namespace


ExampleSuite: Any = _example()["TestBigramStudent"]


@cache
def _made(layers: int, tied: bool) -> Any:
    return tiny_model("llama", tied=tied, vocab_size=V, hidden_size=8, intermediate_size=16, num_hidden_layers=layers)


def small(layers: int = 2, *, tied: bool = True) -> Any:
    """Return a fresh model; copying one is quicker than making one."""
    return copy.deepcopy(_made(layers, tied))


class TestTheExample(ExampleSuite):  # type: ignore[misc]  # made from the page's text
    pass


class TestFixtureStudent(StudentConformance):
    def make_student(self, learning_rate: float) -> StudentLogitsProvider:
        return FixtureStudent(V, 0.0, learning_rate)

    def learnt(self, student: Any) -> SequenceOf[Tensor]:
        return [student.row]

    def first_step(self, gradient: Tensor, learning_rate: float) -> float:
        return learning_rate * float(gradient.mean(0).abs().max())


class TestFixtureTrainee(StudentConformance):
    def make_student(self, learning_rate: float) -> StudentLogitsProvider:
        return FixtureTrainee(V, learning_rate=learning_rate)

    def logits_of_saved(self, folder: Path, token_ids: SequenceOf[int]) -> Tensor:
        return load_file(folder / "fixture.safetensors")["row"].expand(len(token_ids), -1)


class TestCausalLM(StudentConformance):
    def make_student(self, learning_rate: float) -> StudentLogitsProvider:
        return CausalLMStudent(small(1), learning_rate=learning_rate)


@pytest.mark.long
class TestAnotherArchitecture(StudentConformance):
    """GPT-2 learns its positions, and its configuration has dropout."""

    def make_student(self, learning_rate: float) -> StudentLogitsProvider:
        model = tiny_model("gpt2", vocab_size=V, hidden_size=8, max_position_embeddings=V, tied=False)
        return CausalLMStudent(model, learning_rate=learning_rate)


@pytest.mark.long
class TestActivationCheckpointing(StudentConformance):
    def make_student(self, learning_rate: float) -> StudentLogitsProvider:
        model = small()
        checkpoint_activations(model)
        return CausalLMStudent(model, learning_rate=learning_rate)


class TestKeptLayers(StudentConformance):
    def make_student(self, learning_rate: float) -> StudentLogitsProvider:
        model = small(2)
        keep_layers(model, (1,))
        return CausalLMStudent(model, learning_rate=learning_rate)


class TestLora(StudentConformance):
    def make_student(self, learning_rate: float) -> StudentLogitsProvider:
        spec = CausalLMSpec.model_validate({"kind": "causal_lm", "model": "base", "lora_r": 2})
        return LoraStudent(add_adapters(small(1), spec, seed=1), learning_rate=learning_rate)

    def learnt(self, student: Any) -> SequenceOf[Tensor]:
        return [parameter for parameter in student.module.parameters() if parameter.requires_grad]


Gradients = Tensor | SequenceOf[Tensor]


class _LastRowOnly(FixtureStudent):
    def apply_gradients(self, gradients: Gradients, num_valid: int | None = None) -> None:
        kept = copy.deepcopy(list(gradients))
        for row in kept[:-1]:
            row.zero_()
        super().apply_gradients(kept, num_valid)


class _LastPositionStandsIn(FixtureStudent):
    def compute_position_logits(self, input_ids: TokenBatch) -> list[Tensor]:
        return [row[None] for row in self.compute_logits(input_ids)]


class _AnswersNothingWithARow(FixtureStudent):
    def compute_logits(self, input_ids: TokenBatch) -> Tensor:
        return super().compute_logits(input_ids or [[0]])


class _FirstForLast(CausalLMStudent):
    def compute_logits(self, input_ids: TokenBatch) -> Tensor:
        return super().compute_logits([ids[:1] for ids in input_ids])


class _SumInsteadOfMean(FixtureStudent):
    def apply_gradients(self, gradients: Gradients, num_valid: int | None = None) -> None:
        del num_valid
        super().apply_gradients(gradients, 1)


class _AveragesPerRank(CausalLMStudent):
    """Divides by the rows that it was given, where those of all workers count."""

    def apply_gradients(self, gradients: Gradients, num_valid: int | None = None) -> None:
        del num_valid
        super().apply_gradients(gradients)


class _WeighsByPlace(FixtureStudent):
    def apply_gradients(self, gradients: Gradients, num_valid: int | None = None) -> None:
        weighed = [row * (index + 1) for index, row in enumerate(gradients)]
        super().apply_gradients(weighed, num_valid)


class _IgnoresItsLearningRate(CausalLMStudent):
    def __init__(self, model: Any, *, learning_rate: float) -> None:
        del learning_rate
        super().__init__(model, learning_rate=1e-3)


class _AppliesTwice(FixtureStudent):
    def apply_gradients(self, gradients: Gradients, num_valid: int | None = None) -> None:
        super().apply_gradients(gradients, num_valid)
        super().apply_gradients(gradients, num_valid)


class _FreezesItsEmbeddings(CausalLMStudent):
    def __init__(self, model: Any, *, learning_rate: float) -> None:
        super().__init__(model, learning_rate=learning_rate)
        model.get_input_embeddings().weight.requires_grad_(requires_grad=False)


class _TakesAnyRows(FixtureStudent):
    def apply_gradients(self, gradients: Gradients, num_valid: int | None = None) -> None:
        self._computed_rows = None
        super().apply_gradients(gradients, num_valid)


class _MovesWithoutRows(FixtureStudent):
    def apply_gradients(self, gradients: Gradients, num_valid: int | None = None) -> None:
        self.row = self.row * 0.9 + 0.1
        super().apply_gradients(gradients, num_valid)


class _Climbs(FixtureStudent):
    def __init__(self, *_: object) -> None:
        super().__init__(V, 0.0, -0.05)


class _SavesNothing(CausalLMStudent):
    def export(self, folder: Path, card: ModelCard) -> None:
        del card
        folder.mkdir(parents=True)


class _SavesItsFirstWeights(CausalLMStudent):
    def export(self, folder: Path, card: ModelCard) -> None:
        CausalLMStudent(small()).export(folder, card)


class _DropsTheLastLayerInExport(CausalLMStudent):
    def export(self, folder: Path, card: ModelCard) -> None:
        model = copy.deepcopy(self._model)
        keep_layers(model, (0,))
        CausalLMStudent(model).export(folder, card)


class _SeesPadding(CausalLMStudent):
    """Pads on the left and says so to nobody."""

    def _rows(self, input_ids: TokenBatch, positions: list[Tensor]) -> Tensor:
        length = max(map(len, input_ids))
        moved = [position + length - len(ids) for position, ids in zip(positions, input_ids, strict=True)]
        return super()._rows([[0] * (length - len(ids)) + list(ids) for ids in input_ids], moved)


class _SeesOtherDocuments(CausalLMStudent):
    def row_states(self, batch: Batch) -> Tensor:
        run_on = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
        return super().row_states(Batch(batch.input_ids, run_on, batch.rows, batch.labels))


class _CentresTheBatch(CausalLMStudent):
    def row_states(self, batch: Batch) -> Tensor:
        states = super().row_states(batch)
        return states - states.mean(0)


class _HeadCentresItsRows(CausalLMStudent):
    def head(self, states: Tensor) -> Tensor:
        return super().head(states - states.mean(0))


class _AlwaysDrops(CausalLMStudent):
    def head(self, states: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().head(states))


class _DropsByTheClock(CausalLMStudent):
    calls = 0

    def head(self, states: Tensor) -> Tensor:
        self.calls += 1
        return super().head(states) * (1 + 0.01 * self.calls)


class _FixtureSuite(TestFixtureStudent):
    __test__ = False
    fault: type[FixtureStudent]

    def make_student(self, learning_rate: float) -> StudentLogitsProvider:
        return self.fault(V, 0.0, learning_rate)


class _CausalSuite(StudentConformance):
    fault: type[CausalLMStudent]

    def make_student(self, learning_rate: float) -> StudentLogitsProvider:
        return self.fault(small(), learning_rate=learning_rate)


def caught_by(fault: Any, names: SequenceOf[str]) -> set[str]:
    """Return those of the suite's tests that fail on a student."""
    base: Any = _FixtureSuite if issubclass(fault, FixtureStudent) else _CausalSuite
    suite = type("Suite", (base,), {"fault": fault})()
    failed = set()
    for name in names:
        try:
            getattr(suite, f"test_{name}")()
        except (AssertionError, ValueError, IndexError):
            failed.add(name)
    return failed


FAULTS: dict[type, set[str]] = {
    _LastRowOnly: {
        "batch_001_every_row_in_the_loss_is_a_row_in_the_update",
        "batch_003_the_order_of_the_rows_changes_nothing",
        "batch_004_a_batch_given_twice_over_is_the_same_update",
        "batch_007_every_position_of_ragged_sequences_is_in_the_update",
    },
    _LastPositionStandsIn: {
        "batch_007_every_position_of_ragged_sequences_is_in_the_update",
        "steps_towards_the_teacher_lower_the_loss",
        "there_is_one_row_of_logits_for_each_prediction",
    },
    _AnswersNothingWithARow: {
        "there_is_one_row_of_logits_for_each_prediction",
    },
    _FirstForLast: {
        "the_last_position_is_the_last_of_all_positions",
    },
    _SumInsteadOfMean: {
        "batch_004_a_batch_given_twice_over_is_the_same_update",
        "batch_005_a_step_divides_by_num_valid",
        "the_learning_rate_is_the_size_of_a_step",
    },
    _AveragesPerRank: {
        "batch_005_a_step_divides_by_num_valid",
    },
    _WeighsByPlace: {
        "batch_003_the_order_of_the_rows_changes_nothing",
        "batch_004_a_batch_given_twice_over_is_the_same_update",
        "the_learning_rate_is_the_size_of_a_step",
    },
    _IgnoresItsLearningRate: {
        "the_learning_rate_is_the_size_of_a_step",
    },
    _AppliesTwice: {
        "the_learning_rate_is_the_size_of_a_step",
    },
    _FreezesItsEmbeddings: {
        "batch_008_steps_reach_every_parameter",
    },
    _TakesAnyRows: {
        "rows_that_were_not_computed_are_refused_and_change_nothing",
    },
    _MovesWithoutRows: {
        "an_empty_gradient_changes_nothing",
        "rows_that_were_not_computed_are_refused_and_change_nothing",
        "the_learning_rate_is_the_size_of_a_step",
    },
    _Climbs: {
        "steps_towards_the_teacher_lower_the_loss",
        "the_learning_rate_is_the_size_of_a_step",
    },
    _SavesNothing: {
        "a_checkpoint_is_written_and_holds_what_was_learnt",
        "a_student_that_is_not_finite_is_never_written",
    },
    _SavesItsFirstWeights: {
        "a_checkpoint_is_written_and_holds_what_was_learnt",
        "a_student_that_is_not_finite_is_never_written",
        "what_was_saved_gives_the_logits_that_were_learnt",
    },
    _DropsTheLastLayerInExport: {
        "what_was_saved_gives_the_logits_that_were_learnt",
    },
    _SeesPadding: {
        "a_sequence_is_answered_as_if_it_stood_alone",
    },
    _SeesOtherDocuments: {
        "documents_in_one_sample_do_not_see_each_other",
    },
    _CentresTheBatch: {
        "a_sequence_is_answered_as_if_it_stood_alone",
        "batch_006_gradients_of_parts_add_up_to_those_of_the_whole",
        "documents_in_one_sample_do_not_see_each_other",
        "the_last_position_is_the_last_of_all_positions",
        "what_was_saved_gives_the_logits_that_were_learnt",
    },
    _HeadCentresItsRows: {
        "a_sequence_is_answered_as_if_it_stood_alone",
        "batch_006_gradients_of_parts_add_up_to_those_of_the_whole",
        "documents_in_one_sample_do_not_see_each_other",
        "the_head_gives_the_same_in_chunks",
        "the_last_position_is_the_last_of_all_positions",
        "what_was_saved_gives_the_logits_that_were_learnt",
    },
    _DropsByTheClock: {
        "documents_in_one_sample_do_not_see_each_other",
        "the_head_gives_the_same_in_chunks",
        "the_last_position_is_the_last_of_all_positions",
        "training_follows_from_the_seed_and_evaluation_from_nothing",
        "what_was_saved_gives_the_logits_that_were_learnt",
    },
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_batch_002_a_planted_fault_is_caught(fault: type) -> None:
    one_of_them = min(FAULTS[fault])
    assert caught_by(fault, [one_of_them]) == {one_of_them}


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught_by_these_tests_and_no_other(fault: type) -> None:
    assert caught_by(fault, SUITE) == FAULTS[fault]


def test_dropout_in_evaluation_is_caught() -> None:
    """By more tests than this one, but which of them follows from what is dropped."""
    name = "training_follows_from_the_seed_and_evaluation_from_nothing"
    assert caught_by(_AlwaysDrops, [name]) == {name}


def test_every_test_of_the_suite_is_needed_by_a_fault() -> None:
    assert {name for found in FAULTS.values() for name in found} == set(SUITE)
