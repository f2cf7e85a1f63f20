"""Hidden states as they are, and logits at ids that differ from position to position."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stillhouse.codec import decode_payload, encode_payload
from stillhouse.encode import encode_hidden, encode_logits
from stillhouse.encodings import Candidates, Hidden, ValueType
from stillhouse.errors import InvalidRequestError, TeacherInternalError
from stillhouse.payloads import CandidateLogits
from stillhouse.request import All, From, Positions, Sequence

IDS = ((0, 3), (5, 89), (1, 2), (7, 8))


def candidates(
    x: Tensor, *, positions: Positions | None = None, ids: tuple[tuple[int, ...], ...] = IDS
) -> CandidateLogits:
    sequence = Sequence((4, 5, 6, 7), positions=positions or All(), candidate_ids=ids)
    payload = encode_logits(torch.split(x, 3), Candidates(), sequence=sequence, temperature=2.0, vocabulary_size=90)
    assert isinstance(payload, CandidateLogits)
    return payload


def logits(rows: int) -> Tensor:
    return 3 * torch.randn(rows, 100, generator=torch.Generator().manual_seed(0))


def test_each_position_answers_about_its_own_ids() -> None:
    x = logits(4)
    payload = candidates(x)
    assert payload.token_ids.tolist() == [list(ids) for ids in IDS]
    assert payload.logits.equal(x.gather(1, torch.tensor(IDS)))
    for t, normalizer, tail in (
        (1.0, payload.log_normalizer, payload.log_tail_mass),
        (2.0, payload.tempered_log_normalizer, payload.tempered_log_tail_mass),
    ):
        exact = x[:, :90].double() / t
        rest = exact.scatter(1, torch.tensor(IDS), -math.inf).logsumexp(1)
        torch.testing.assert_close(normalizer.double(), exact.logsumexp(1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(tail.double(), rest - exact.logsumexp(1), rtol=1e-6, atol=1e-6)


def test_ids_go_with_the_positions_asked_for_not_with_the_sequence() -> None:
    x = logits(4)
    some, every = candidates(x[2:], positions=From(2), ids=IDS[2:]), candidates(x)
    assert some.token_ids.equal(every.token_ids[2:])
    assert some.logits.equal(every.logits[2:])


def test_the_same_ids_everywhere_have_the_same_logits_either_way() -> None:
    x = logits(4)
    shared = encode_logits(
        [x], Candidates((5, 6)), sequence=Sequence((4, 5, 6, 7), positions=All()), temperature=2.0, vocabulary_size=90
    )
    own = candidates(x, ids=((5, 6),) * 4)
    assert isinstance(shared, CandidateLogits)
    assert own.logits.equal(shared.logits)
    assert own.tempered_log_tail_mass.equal(shared.tempered_log_tail_mass)
    assert decode_payload(encode_payload(own)).num_positions == 4


def test_an_id_beyond_n_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="candidate_ids must be below the vocabulary size 90; got 90"):
        candidates(logits(4), ids=(*IDS[:3], (7, 90)))
    with pytest.raises(InvalidRequestError, match="candidate_ids must name ids for each position"):
        candidates(logits(4), ids=())


@pytest.mark.parametrize("value_type", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_states_are_rounded_to_the_value_type(value_type: ValueType, dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 8).to(dtype)
    payload = encode_hidden(hidden, Hidden(value_type))
    assert payload.hidden.equal(hidden.to(getattr(torch, value_type)))


def test_hidden_states_share_nothing_with_the_batch_that_they_are_cut_from() -> None:
    batch = torch.randn(4, 5, 8)
    payload = encode_hidden(batch[1, 2:], Hidden("float32"))
    assert payload.hidden.untyped_storage().nbytes() == 3 * 8 * 4
    before = payload.hidden.clone()
    batch.zero_()
    assert payload.hidden.equal(before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_damaged_hidden_state_is_an_error_that_names_the_row(bad: float) -> None:
    hidden = torch.randn(4, 8)
    hidden[2, 5] = bad
    with pytest.raises(TeacherInternalError, match="hidden state at row 2 holds a NaN or an infinity"):
        encode_hidden(hidden, Hidden())


def test_a_hidden_state_that_bfloat16_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"hidden\.value_type bfloat16 cannot hold a value of 3\.4e\+38"):
        encode_hidden(torch.full((1, 2), 3.4e38), Hidden("bfloat16"))


@pytest.mark.parametrize("rows", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64)], ids=["shape", "dtype"])
def test_what_is_no_table_of_hidden_states_is_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"floating-point \[P, D\]"):
        encode_hidden(rows, Hidden())
