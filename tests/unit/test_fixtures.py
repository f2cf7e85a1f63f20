"""The teacher and the student with no model do what their docs foretell."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from stillhouse.encodings import Hidden, Sampled, TopK, ValueType
from stillhouse.errors import CheckpointError, EncodingNotOfferedError, InvalidRequestError
from stillhouse.fixtures import LARGEST_HEAD, FixtureStudent, FixtureTeacher
from stillhouse.payloads import DenseLogits, HiddenStates, Payload, SampledCounts, TopKLogits
from stillhouse.request import Explicit, Last, LogitsRequest, Sequence
from stillhouse.tensor_bytes import DTYPES

V = 10


def dense(payload: Payload) -> torch.Tensor:
    assert isinstance(payload, DenseLogits)
    return payload.logits


def test_fixture_001_the_argmax_is_the_last_token() -> None:
    for ids in ([3], [1, 2, 7], [9, 9, 0]):
        (payload,) = FixtureTeacher(V).logits([ids], positions=Last())
        expected = torch.zeros(1, V)
        expected[0, ids[-1]] = 10.0
        assert torch.equal(dense(payload), expected)


def test_each_position_prefers_the_next_token_and_the_last_its_own() -> None:
    ragged = FixtureTeacher(V).logits([[1, 2, 3], [4]])
    assert [dense(payload).argmax(-1).tolist() for payload in ragged] == [[2, 3, 3], [4]]


def test_packed_documents_do_not_look_into_each_other() -> None:
    sequence = Sequence((1, 2, 3, 4, 5), segment_lengths=(2, 3), positions=Explicit((0, 1, 2, 4)))
    (payload,) = FixtureTeacher(V).answer(LogitsRequest((sequence,))).payloads
    assert dense(payload).argmax(-1).tolist() == [2, 2, 4, 5]


def test_a_token_outside_the_vocabulary_counts_as_token_0() -> None:
    (payload,) = FixtureTeacher(V).logits([[1, V, 2, 10**6]])
    assert dense(payload).argmax(-1).tolist() == [0, 2, 0, 0]


def test_an_empty_batch_has_an_empty_answer() -> None:
    assert FixtureTeacher(V).logits([]) == ()


def test_the_teacher_offers_top_k_and_fewer_ids() -> None:
    (payload,) = FixtureTeacher(V).logits([[1, 2]], encoding=TopK(2), temperature=2.0, vocabulary_size=8)
    assert isinstance(payload, TopKLogits)
    assert payload.token_ids.tolist() == [[2, 0], [2, 0]]
    assert (payload.temperature, payload.vocabulary_size) == (2.0, 8)
    assert payload.log_normalizer[0].item() == pytest.approx(math.log(math.exp(10) + 7))


@pytest.mark.parametrize("value_type", ["float32", "bfloat16"])
def test_hidden_states_and_the_head_give_the_very_logits(value_type: ValueType) -> None:
    teacher = FixtureTeacher(V)
    (payload,), (logits,) = teacher.logits([[1, 2, 3]], encoding=Hidden(value_type)), teacher.logits([[1, 2, 3]])
    head = teacher.output_head(value_type)
    assert isinstance(payload, HiddenStates)
    assert payload.hidden.dtype == head.weight.dtype == DTYPES[value_type]
    assert payload.hidden.shape[1] == head.hidden_size == teacher.describe().hidden_size
    assert torch.equal(head.logits(payload.hidden).float(), dense(logits))


def test_draws_come_from_the_distribution_that_is_foretold() -> None:
    (payload,) = FixtureTeacher(V).logits([[1] * 9], encoding=Sampled(1000))
    assert isinstance(payload, SampledCounts)
    assert int(payload.counts[payload.token_ids == 1].sum()) > 8900


def test_a_vocabulary_too_large_for_a_head_offers_no_hidden_states() -> None:
    teacher = FixtureTeacher(LARGEST_HEAD + 1)
    assert teacher.describe().hidden_size == 0
    with pytest.raises(EncodingNotOfferedError):
        teacher.logits([[1]], encoding=Hidden())
    with pytest.raises(EncodingNotOfferedError):
        teacher.output_head()
    assert dense(teacher.logits([[1, LARGEST_HEAD]])[0]).argmax(-1).tolist() == [LARGEST_HEAD] * 2


def test_what_no_teacher_could_serve_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="vocabulary_size must be at most the teacher's 10; got 11"):
        FixtureTeacher(V).logits([[1]], vocabulary_size=V + 1)


def test_a_description_names_the_vocabulary_and_two_of_a_size_are_the_same_teacher() -> None:
    description = FixtureTeacher(V).describe()
    assert description.vocabulary_size == description.tokenizer_size == len(description.tokens) == V
    assert description == FixtureTeacher(V).describe()
    assert description.fingerprint != FixtureTeacher(V + 1).describe().fingerprint


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_vocabulary_has_at_least_one_entry(size: int) -> None:
    with pytest.raises(ValueError, match="vocab_size must be an integer of at least 1"):
        FixtureTeacher(size)
    with pytest.raises(ValueError, match="vocab_size must be an integer of at least 1"):
        FixtureStudent(size)


def test_the_student_answers_one_row_for_every_input() -> None:
    student = FixtureStudent(3, 0.5, 0.1)
    assert student.compute_logits([[1], [2, 3]]).tolist() == [[0.5] * 3] * 2
    assert [rows.shape for rows in student.compute_position_logits([[1], [2, 3]])] == [(1, 3), (2, 3)]


def test_a_step_moves_the_row_by_the_average_of_the_batch() -> None:
    student = FixtureStudent(2, 1.0, 0.5)
    student.apply_gradients([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])])
    assert student.row.tolist() == [0.5, 0.0]
    student.apply_gradients(torch.tensor([[4.0, 0.0]]), num_valid=4)
    assert student.row.tolist() == [0.0, 0.0]


def test_what_was_computed_is_not_changed_by_a_step() -> None:
    student = FixtureStudent(2)
    before = student.compute_logits([[1]])
    student.apply_gradients(torch.ones(1, 2))
    assert before.tolist() == [[0.0, 0.0]]


def test_an_empty_gradient_changes_nothing() -> None:
    student = FixtureStudent(2, 1.0)
    student.apply_gradients([])
    student.apply_gradients(torch.empty(0, 2))
    student.apply_gradients([torch.empty(0, 2), torch.empty(0, 2)])
    assert student.row.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (torch.ones(1, 3), "must have 2 values"),
        (torch.ones(2, 1), "must have 2 values"),
        (torch.tensor([[math.nan, 0.0]]), "gradients must be finite"),
        (torch.tensor([[math.inf, 0.0]]), "gradients must be finite"),
    ],
)
def test_a_gradient_that_does_not_fit_changes_nothing(gradient: torch.Tensor, message: str) -> None:
    student = FixtureStudent(2, 1.0)
    with pytest.raises(ValueError, match=message):
        student.apply_gradients(gradient)
    with pytest.raises(ValueError, match=message):
        student.apply_gradients([torch.zeros(2), *gradient])
    with pytest.raises(ValueError, match="num_valid must be at least 1"):
        student.apply_gradients(torch.ones(1, 2), num_valid=0)
    with pytest.raises(ValueError, match="num_valid must be at least 1"):
        student.apply_gradients(torch.ones(1, 2), num_valid=math.nan)  # type: ignore[arg-type]  # what a mean may give
    assert student.row.tolist() == [1.0, 1.0]


def test_a_checkpoint_brings_the_row_back_and_leaves_nothing_aside(tmp_path: Path) -> None:
    student = FixtureStudent(3, 0.25)
    student.apply_gradients(torch.tensor([[1.0, -2.0, 3.0]]))
    student.save_checkpoint(tmp_path / "made" / "here")
    assert [file.name for file in (tmp_path / "made" / "here").iterdir()] == ["fixture_student.safetensors"]
    restored = FixtureStudent(3)
    restored.load_checkpoint(tmp_path / "made" / "here")
    assert torch.equal(restored.row, student.row)


def test_a_row_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    student = FixtureStudent(3, math.nan)
    with pytest.raises(CheckpointError, match="NaN"):
        student.save_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_is_an_error_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        FixtureStudent(3).save_checkpoint(tmp_path / "file" / "below")


def test_a_checkpoint_that_is_absent_damaged_or_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        FixtureStudent(3).load_checkpoint(tmp_path)
    FixtureStudent(4).save_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="has 4 values, this student 3"):
        FixtureStudent(3).load_checkpoint(tmp_path)
    (tmp_path / "fixture_student.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage")
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        FixtureStudent(4).load_checkpoint(tmp_path)
