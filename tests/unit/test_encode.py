"""What a payload says of the logits, against float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.codec import Draft, encode_payload, header_of
from stillhouse.encode import encode_logits
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import EncodingNotOfferedError, InvalidRequestError, TeacherInternalError
from stillhouse.head_and_tail import top_k_ids
from stillhouse.payloads import CandidateLogits, DenseLogits, Payload, TopKLogits
from tests.asked import every_position

ENCODINGS: list[Encoding] = [
    Dense(),
    Dense("float16"),
    Dense("bfloat16"),
    TopK(5),
    TopK(5, "float32"),
    Candidates((0, 3, 17)),
    Sampled(9),
]


def encode(
    chunks: Iterable[Tensor], encoding: Encoding, rows: int, *, temperature: float = 1.0, vocabulary_size: int
) -> Payload:
    sequence = every_position(rows)
    return encode_logits(chunks, encoding, sequence=sequence, temperature=temperature, vocabulary_size=vocabulary_size)


def logits_like_a_teachers(rows: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator) * 3 + 5


def top_k(x: Tensor, k: int, *, temperature: float = 1.0, value_type: str = "float32") -> TopKLogits:
    encoding = TopK(k, value_type)  # type: ignore[arg-type]  # a literal, passed on
    payload = encode([x], encoding, len(x), temperature=temperature, vocabulary_size=x.shape[1])
    assert isinstance(payload, TopKLogits)
    return payload


def exact_statistics(x: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The log-normaliser and the log tail mass in float64, the tail being every id but `ids`."""
    t = x.double() / temperature
    normalizer = torch.logsumexp(t, dim=1)
    tail = torch.logsumexp(t.scatter(1, ids.long(), -math.inf), dim=1)
    return normalizer, tail - normalizer


@pytest.mark.parametrize("value_type", ["float32", "float16", "bfloat16"])
def test_dense_logits_are_cut_to_n_and_rounded_to_the_value_type(value_type: str) -> None:
    x = logits_like_a_teachers(4, 50)
    encoding = Dense(value_type)  # type: ignore[arg-type]  # a literal, parametrized
    payload = encode([x], encoding, len(x), temperature=7.0, vocabulary_size=40)
    assert isinstance(payload, DenseLogits)
    assert payload.logits.equal(x[:, :40].to(getattr(torch, value_type)))


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
def test_top_k_statistics_equal_float64_at_any_temperature(temperature: float, scale: float) -> None:
    x = logits_like_a_teachers(8, 5000) * scale
    payload = top_k(x, 16, temperature=temperature)
    for t, normalizer, tail in (
        (1.0, payload.log_normalizer, payload.log_tail_mass),
        (temperature, payload.tempered_log_normalizer, payload.tempered_log_tail_mass),
    ):
        exact_normalizer, exact_tail = exact_statistics(x, payload.token_ids, t)
        assert normalizer.dtype == tail.dtype == torch.float32
        torch.testing.assert_close(normalizer.double(), exact_normalizer, rtol=1e-6, atol=2e-6)
        torch.testing.assert_close(tail.double(), exact_tail, rtol=1e-6, atol=2e-6)
        assert (tail <= 0).all()


@pytest.mark.parametrize("temperature", [1e-37, 1e-35, 1e-31, 1e31, 1e38, 1e300])
def test_temperatures_that_float32_cannot_divide_by_have_statistics(temperature: float) -> None:
    x = torch.tensor([[0.5, 0.25, -3.0, -math.inf, 0.5], [0.0, -1e4, -math.inf, 0.0, 0.0]])
    payload = top_k(x, 3, temperature=temperature)
    exact_normalizer, exact_tail = exact_statistics(x, payload.token_ids, temperature)
    torch.testing.assert_close(payload.tempered_log_normalizer.double(), exact_normalizer, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(payload.tempered_log_tail_mass, exact_tail.float(), rtol=1e-6, atol=1e-6)


def test_a_temperature_that_no_logit_survives_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"temperature must not be so small .* got 1e-300"):
        top_k(torch.tensor([[0.5, 0.25, -3.0]]), 2, temperature=1e-300)


def test_a_tail_far_below_what_subtraction_could_see_keeps_its_digits() -> None:
    # The tail holds 1e-17 of the mass: 1 - (sum of the head) would be 0, or below it.
    x = torch.zeros(1, 1000)
    x[0, :4] = torch.tensor([47.0, 46.0, 45.5, 45.0])
    payload = top_k(x, 4)
    _, exact_tail = exact_statistics(x, payload.token_ids, 1.0)
    assert exact_tail.exp() < 1e-12
    torch.testing.assert_close(payload.log_tail_mass.double(), exact_tail, rtol=1e-6, atol=0)


def test_the_tail_of_large_logits_keeps_its_digits() -> None:
    x = logits_like_a_teachers(4, 1000) + 1e4
    payload = top_k(x, 8)
    _, exact_tail = exact_statistics(x, payload.token_ids, 1.0)
    torch.testing.assert_close(payload.log_tail_mass.double(), exact_tail, rtol=0, atol=2e-6)


def test_the_statistics_come_from_the_unrounded_logits() -> None:
    x = logits_like_a_teachers(4, 1000)
    half, full = top_k(x, 8, value_type="float16"), top_k(x, 8)
    assert half.logits.dtype == torch.float16
    assert half.log_normalizer.equal(full.log_normalizer)
    assert half.log_tail_mass.equal(full.log_tail_mass)


def test_nothing_is_left_for_a_tail_where_k_is_n() -> None:
    payload = top_k(logits_like_a_teachers(3, 20), 20, temperature=2.0)
    assert payload.log_tail_mass.tolist() == payload.tempered_log_tail_mass.tolist() == [-math.inf] * 3
    assert payload.token_ids.sort(dim=1).values.tolist() == [list(range(20))] * 3


def test_a_token_that_cannot_be_is_kept_as_such() -> None:
    x = torch.tensor([[1.0, -math.inf, 2.0, -math.inf]])
    payload = top_k(x, 3)
    assert payload.token_ids.tolist() == [[2, 0, 1]]
    assert payload.logits.tolist() == [[2.0, 1.0, -math.inf]]
    assert payload.log_tail_mass.tolist() == [-math.inf]


def test_the_head_is_what_n_leaves() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    payload = encode([x], TopK(2, "float32"), len(x), vocabulary_size=3)
    assert isinstance(payload, TopKLogits)
    assert payload.token_ids.tolist() == [[2, 1]]
    torch.testing.assert_close(payload.log_normalizer, torch.logsumexp(x[:, :3], dim=1))


@settings(deadline=None)
@given(st.data())
def test_equal_logits_come_by_rising_id(data: st.DataObject) -> None:
    # Few distinct values, so that most rows are cut in the middle of a tie.
    rows = data.draw(st.integers(1, 4))
    width = data.draw(st.integers(1, 40))
    k = data.draw(st.integers(1, width))
    values = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1.0])
    table = data.draw(st.lists(st.lists(values, min_size=width, max_size=width), min_size=rows, max_size=rows))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    expected = [[id_ for _, id_ in sorted((-value, id_) for id_, value in enumerate(row))][:k] for row in table]
    assert top_k_ids(torch.tensor(table, dtype=dtype), k).tolist() == expected


def test_candidates_are_exact_with_their_log_normalizers() -> None:
    x = logits_like_a_teachers(3, 100)
    payload = encode([x], Candidates((4, 50)), len(x), temperature=2.0, vocabulary_size=90)
    assert isinstance(payload, CandidateLogits)
    assert payload.token_ids.tolist() == [4, 50]
    assert payload.logits.equal(x[:, [4, 50]])
    exact = x[:, :90].double()
    torch.testing.assert_close(payload.log_normalizer.double(), exact.logsumexp(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(payload.tempered_log_normalizer.double(), (exact / 2).logsumexp(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (5, 7), (0, 11, 0, 1)])
def test_the_chunks_do_not_show_in_the_bytes(encoding: Encoding, sizes: tuple[int, ...]) -> None:
    x = logits_like_a_teachers(12, 64)
    whole = encode_payload(encode([x], encoding, len(x), temperature=2.0, vocabulary_size=60))
    parts = encode(iter(torch.split(x, list(sizes))), encoding, 12, temperature=2.0, vocabulary_size=60)
    assert encode_payload(parts) == whole


@pytest.mark.parametrize("encoding", [one for one in ENCODINGS if not isinstance(one, Sampled)], ids=repr)
def test_an_answer_made_in_place_is_the_one_made_anew(encoding: Encoding) -> None:
    x, sequence = logits_like_a_teachers(12, 64), every_position(12)
    anew = encode([x], encoding, 12, temperature=2.0, vocabulary_size=60)
    draft = Draft.of(header_of(anew))
    made = encode_logits(
        torch.split(x, 5), encoding, sequence=sequence, temperature=2.0, vocabulary_size=60, into=draft.payload
    )
    assert encode_payload(made) == encode_payload(anew)
    assert draft.seal() == encode_payload(anew)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
def test_the_callers_logits_are_left_as_they_were(encoding: Encoding) -> None:
    x = logits_like_a_teachers(4, 30)
    before = x.clone()
    encode([x], encoding, len(x), temperature=2.0, vocabulary_size=30)
    assert x.equal(before)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
def test_one_buffer_may_carry_every_chunk(encoding: Encoding) -> None:
    # A chunk is done with before the next is asked for: nothing of the payload still points into it.
    x = logits_like_a_teachers(6, 30)

    def chunks() -> Iterator[Tensor]:
        buffer = torch.empty(2, 30)
        for rows in torch.split(x, 2):
            yield buffer.copy_(rows)

    payload = encode(chunks(), encoding, 6, temperature=2.0, vocabulary_size=30)
    whole = encode([x], encoding, 6, temperature=2.0, vocabulary_size=30)
    assert encode_payload(payload) == encode_payload(whole)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
@pytest.mark.parametrize("bad", [math.nan, math.inf, "all -inf"])
def test_logits_without_a_softmax_are_an_error_that_names_the_row(encoding: Encoding, bad: float | str) -> None:
    x = logits_like_a_teachers(6, 30)
    if isinstance(bad, str):
        x[4] = -math.inf
    else:
        x[4, 7] = bad
    with pytest.raises(TeacherInternalError, match="row 4"):
        encode(torch.split(x, 2), encoding, len(x), vocabulary_size=30)


def test_a_nan_beyond_n_harms_nobody() -> None:
    x = logits_like_a_teachers(2, 30)
    x[:, 25:] = math.nan
    encode([x], Dense(), len(x), vocabulary_size=25)


@pytest.mark.parametrize("encoding", [Dense("float16"), TopK(2), Candidates((0, 1), "float16")], ids=repr)
@pytest.mark.parametrize("large", [70_000.0, -70_000.0])
def test_a_logit_that_float16_cannot_hold_is_refused_not_made_infinite(encoding: Encoding, large: float) -> None:
    x = torch.tensor([[large, 1.0, -math.inf]]) if large > 0 else torch.tensor([[large, large, -math.inf]])
    with pytest.raises(InvalidRequestError, match="float16 cannot hold a value of 70000; ask for float32"):
        encode([x], encoding, len(x), vocabulary_size=3)


def test_minus_infinity_passes_through_float16() -> None:
    payload = encode([torch.tensor([[1.0, -math.inf]])], Dense("float16"), 1, vocabulary_size=2)
    assert isinstance(payload, DenseLogits)
    assert payload.logits.tolist() == [[1.0, -math.inf]]


def test_hidden_states_are_not_made_from_logits() -> None:
    with pytest.raises(EncodingNotOfferedError, match="Hidden"):
        encode([], Hidden(), 1, vocabulary_size=3)


@pytest.mark.parametrize(
    ("encoding", "message"), [(TopK(4), "top_k.k must be at most .* 3; got 4"), (Candidates((3,)), "below .* 3; got 3")]
)
def test_ids_beyond_n_are_refused(encoding: Encoding, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        encode([], encoding, 1, vocabulary_size=3)


@pytest.mark.parametrize(
    ("chunks", "num_positions", "message"),
    [
        ([torch.zeros(3)], 3, "row_chunks must be"),
        ([torch.zeros(3, 9)], 3, "at least 10"),
        ([torch.zeros(3, 10, dtype=torch.int64)], 3, "floating-point"),
        ([torch.zeros(3, 10)], 2, "at least 3 rows"),
        ([torch.zeros(3, 10)], 4, "3 rows"),
    ],
)
def test_chunks_of_another_shape_are_refused(chunks: list[Tensor], num_positions: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(chunks, Dense(), num_positions, vocabulary_size=10)
