"""Named tokens, as a caller has them: in any order, in any container, some of them twice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.encodings import Candidates, TopK
from stillhouse.errors import InvalidRequestError
from stillhouse.fixtures import PREFERRED_LOGIT, FixtureTeacher
from stillhouse.payloads import CandidateLogits
from stillhouse.request import All, Explicit, Last

N = 20
TEACHER = FixtureTeacher(N)


def expected(preferred: int, token: int, temperature: float = 1.0, size: int = N) -> float:
    """log softmax of the fixture's logits, by hand."""
    raised = PREFERRED_LOGIT / temperature
    return (raised if token == preferred else 0.0) - math.log(math.exp(raised) + size - 1)


@settings(deadline=None)
@given(st.data(), st.sampled_from([1.0, 2.0]))
def test_every_id_has_its_own_log_probability_in_the_callers_order(data: st.DataObject, temperature: float) -> None:
    token = st.integers(0, N - 1)
    rows = data.draw(st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=3))
    width = data.draw(st.integers(1, 30))  # more than there are ids: some stand twice
    named = [[[data.draw(token) for _ in range(width)] for _ in row] for row in rows]
    scores = TEACHER.log_probs(rows, named, temperature=temperature)
    for row, ids, score in zip(rows, named, scores, strict=True):
        following = [*row[1:], row[-1]]
        by_hand = [
            [expected(next_, one, temperature) for one in some] for next_, some in zip(following, ids, strict=True)
        ]
        torch.testing.assert_close(score, torch.tensor(by_hand), rtol=0, atol=1e-5)


def test_by_default_it_is_what_follows() -> None:
    (scores,) = TEACHER.log_probs([[3, 1, 4]])
    assert scores.tolist() == pytest.approx([expected(1, 1), expected(4, 4)], abs=1e-5)
    (scores,) = TEACHER.log_probs([[3, 1, 4, 1]], positions=Explicit((1, 2)), vocabulary_size=10)
    assert scores.tolist() == pytest.approx([expected(4, 4, size=10), expected(1, 1, size=10)], abs=1e-5)


@pytest.mark.parametrize(
    "named",
    [
        [[7, 1, 7]],
        [np.array([7, 1, 7], dtype=np.uint16)],
        torch.tensor([[7, 1, 7]]),
        [[[7], [1], [7]]],
        torch.tensor([[[7], [1], [7]]]),
    ],
    ids=["list", "array", "tensor", "nested", "three-dimensional"],
)
def test_the_result_has_the_shape_that_was_given(named: Any) -> None:
    (scores,) = TEACHER.log_probs([[3, 7, 4]], named)
    assert list(scores.shape) == list(np.asarray(named[0]).shape)
    assert scores.flatten().tolist() == pytest.approx([expected(7, 7), expected(4, 1), expected(4, 7)], abs=1e-5)


def test_each_sequence_may_have_its_own_positions_and_number_of_ids() -> None:
    first, second = TEACHER.log_probs([[3, 1, 4], [5, 6]], [[[1, 2]], [[6], [9]]], positions=[Explicit((0,)), All()])
    assert first.tolist() == [pytest.approx([expected(1, 1), expected(1, 2)], abs=1e-5)]
    assert second.flatten().tolist() == pytest.approx([expected(6, 6), expected(6, 9)], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([[1, 2]], [[3]]), {}, "each of the 2 positions"),
        (([[1, 2]], [[3, 4], [5, 6]]), {}, "each of the 1 sequences; got 2"),
        (([[1]], [[1.5]]), {}, "must be integers"),
        (([[1, 2]], [[[1], [2, 3]]]), {}, "candidate_ids"),
        (([[1]], [[-1]]), {}, "ids from 0"),
        (([[1]], [[N]]), {}, "below the vocabulary size"),
        (([[1]], [[]]), {}, "must be integers"),
        (([[1]],), {}, "two ids or more"),
        (([[1, 2]],), {"positions": Last()}, "which no id follows"),
        (([[1, 2]], [[3, 4]]), {"positions": [All(), All()]}, "one for each of 1; got 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        TEACHER.log_probs(*arguments, **options)


def test_logits_at_named_ids_stand_rising_whatever_order_they_came_in() -> None:
    (payload,) = TEACHER.logits([[3, 1]], candidate_ids=torch.tensor([[[9, 1], [0, 4]]]), temperature=2.0)
    assert isinstance(payload, CandidateLogits)
    assert payload.token_ids.tolist() == [[1, 9], [0, 4]]
    assert payload.logits.tolist() == [[PREFERRED_LOGIT, 0.0], [0.0, 0.0]]
    (payload,) = TEACHER.logits([[3]], candidate_ids=[[3]], encoding=Candidates((), "float16"))
    assert isinstance(payload, CandidateLogits)
    assert payload.logits.dtype == torch.float16


def test_logits_at_named_ids_want_none_twice_and_no_other_encoding() -> None:
    with pytest.raises(InvalidRequestError, match=r"candidate_ids\[0\]\[1\] names id 4 twice.*log_probs"):
        TEACHER.logits([[3, 1]], candidate_ids=[[[1, 2], [4, 4]]])
    with pytest.raises(InvalidRequestError, match="candidate_ids must be given with an encoding Candidates"):
        TEACHER.logits([[3]], candidate_ids=[[3]], encoding=TopK(2))
