"""What is asked in a wrong way is refused by name and value, before anybody computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stillhouse.encodings import Sampled
from stillhouse.fixtures import FixtureTeacher
from stillhouse.kd import causal_lm_kd_loss, kd_loss, kd_step, kd_step_per_position
from stillhouse.payloads import HiddenStates
from stillhouse.request import All

V, B, L = 9, 2, 5
LOGITS = torch.randn(B, L, V, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(B * L).view(B, L) % V
REAL = torch.ones(B, L, dtype=torch.int64)


def _changed(tensor: torch.Tensor, row: int, column: int, value: int) -> torch.Tensor:
    changed = tensor.clone()
    changed[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": IDS + 0.5}, "labels must be integers; got torch.float32"),
        ({"labels": IDS > 3}, "labels must be integers; got torch.bool"),
        ({"labels": IDS.tolist()}, r"labels must have the logits' shape \(2, 5\); got a list"),
        ({"labels": _changed(IDS, 1, 3, 99)}, r"labels\[1, 3\] must be -100 \(no label\) or an id from 0 to 8; got 99"),
        ({"attention_mask": REAL.tolist()}, "attention_mask must have the logits' shape .*; got a list"),
        ({"attention_mask": _changed(REAL, 1, 2, 0)}, "in one run for each row; those of row 1 are in 2"),
        ({"student_logits": LOGITS.tolist()}, "student_logits must be .*; got a list"),
        ({"vocabulary_size": 9.0}, "vocabulary_size must be .*an integer.*; got 9.0"),
        (
            {"num_items_in_batch": torch.tensor([4, 4])},
            r"num_items_in_batch must be one number; got a tensor of shape \(2,\)",
        ),
        ({"top_k_tail": "dropped"}, "top_k_tail must be bucket or renormalise; got 'dropped'"),
    ],
)
def test_a_transformers_batch_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "student_logits": LOGITS, "teacher": FixtureTeacher(V), "labels": IDS, "attention_mask": REAL,
        "input_ids": IDS, "temperature": 1.0, "alpha": 0.5,
    }  # fmt: skip
    assert torch.isfinite(causal_lm_kd_loss(**right))
    with pytest.raises(ValueError, match=message):
        causal_lm_kd_loss(**right | wrong)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_one_run(side: str) -> None:
    mask = REAL.clone()
    mask[0, slice(0, 2) if side == "left" else slice(3, 5)] = 0
    mask[1] = 0  # a row of nothing but padding
    loss = causal_lm_kd_loss(
        LOGITS, FixtureTeacher(V), IDS, attention_mask=mask, input_ids=IDS, temperature=1.0, alpha=0.5
    )
    assert torch.isfinite(loss)


@pytest.mark.parametrize("teacher", [None, "localhost:8001", [HiddenStates(torch.zeros(2, 3))]])
def test_a_teacher_that_is_neither_payload_nor_logits_is_refused(teacher: Any) -> None:
    with pytest.raises(ValueError, match="teacher, where it is no payload, must be a float tensor"):
        kd_loss(LOGITS[0], teacher, temperature=1.0, alpha=0.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocabulary_size": "9"}, "vocabulary_size must be .*an integer.*; got '9'"),
        ({"top_k_tail": "dropped"}, "top_k_tail must be bucket or renormalise"),
        ({"output_head": torch.zeros(V, 3)}, "output_head must be an OutputHead, .*; got Tensor"),
    ],
)
def test_an_option_is_refused_whatever_the_teacher_answered(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kd_loss(LOGITS[0], LOGITS[1], temperature=1.0, alpha=0.0, **wrong)


def test_draws_at_another_temperature_are_refused_without_talk_of_a_top_k() -> None:
    (payload,) = FixtureTeacher(V).logits([[1, 2, 3, 4, 5]], encoding=Sampled(4), positions=All(), temperature=2.0)
    with pytest.raises(ValueError, match=r"temperature is 1\.0, but the teacher's answer was made at 2\.0"):
        kd_loss(LOGITS[0], payload, temperature=1.0, alpha=0.0)


def test_a_step_names_the_sequence_of_a_wrong_label() -> None:
    with pytest.raises(ValueError, match=r"labels\[1\]\[0\] must be .* got 22"):
        kd_step_per_position(FixtureTeacher(V), [[1, 2], [3]], [[1, -100], [22]], 1.0, 0.5, lambda _: [])


@pytest.mark.parametrize("answer", [[[0.0] * V] * 2, torch.zeros(2, 1, V), torch.zeros(2, V, dtype=torch.int64)])
def test_a_student_that_answers_no_logits_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match="the student's logits must be a float tensor"):
        kd_step(FixtureTeacher(V), [[1, 2], [3]], [1, 2], 1.0, 0.5, lambda _: answer)
    with pytest.raises(ValueError, match=r"the student's logits\[0\] must be a float tensor"):
        kd_step_per_position(FixtureTeacher(V), [[1]], [[2]], 1.0, 0.5, lambda _: [answer])
