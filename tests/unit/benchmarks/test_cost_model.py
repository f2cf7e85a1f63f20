"""What the model of costs says agrees with the bytes that are made, and grows as its formulae say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks._cost.model import (
    Machine,
    Shape,
    TrainingEncoding,
    forward_flops,
    forward_seconds,
    kernel_seconds,
    log2_choices,
    payload_bytes,
    requests_s,
    step_seconds,
    sum_seconds,
)
from benchmarks._cost.point import Point
from stillhouse.codec import encode_payload
from stillhouse.encode import encode_hidden, encode_logits
from stillhouse.encodings import Dense, Hidden, Sampled, TopK
from stillhouse.payloads import SampledCounts
from stillhouse.request import All, Sequence

MACHINE = Machine(pass_bytes_s=1e10, exponentials_s=1e9, flop_s=1e11)
VOCABULARY, WIDTH, ROWS = 512, 24, 5


def _coded(encoding: TrainingEncoding) -> tuple[int, float | None]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(encoding, Hidden):
        return len(encode_payload(encode_hidden(torch.randn(ROWS, WIDTH, generator=generator), encoding))), None
    logits = torch.randn(ROWS, VOCABULARY, generator=generator)
    asked = Sequence(tuple(range(ROWS)), positions=All())
    payload = encode_logits([logits], encoding, sequence=asked, temperature=1.0, vocabulary_size=VOCABULARY)
    distinct = len(payload.token_ids) / ROWS if isinstance(payload, SampledCounts) else None
    return len(encode_payload(payload)), distinct


@pytest.mark.parametrize(
    "encoding",
    [Dense("float32"), Dense("bfloat16"), Hidden("bfloat16"), Hidden("float32"), TopK(7), TopK(7, "float32")],
)
def test_the_bytes_of_an_answer_are_those_that_the_model_says(encoding: TrainingEncoding) -> None:
    num_bytes, _ = _coded(encoding)
    assert num_bytes == payload_bytes(encoding, ROWS, vocabulary=VOCABULARY, hidden=WIDTH)


def test_the_bytes_of_draws_are_nearly_those_of_a_choice_among_all_sets_of_ids() -> None:
    num_bytes, distinct = _coded(Sampled(20))
    assert num_bytes == pytest.approx(
        payload_bytes(Sampled(20), ROWS, vocabulary=VOCABULARY, distinct=distinct), rel=0.1
    )


def test_the_bytes_of_draws_need_the_number_of_distinct_ids() -> None:
    with pytest.raises(ValueError, match="distinct must be given"):
        payload_bytes(Sampled(20), ROWS, vocabulary=VOCABULARY)


@given(st.integers(1, 400), st.data())
def test_choices_are_counted_as_the_binomial_coefficient_does(total: int, data: st.DataObject) -> None:
    chosen = data.draw(st.integers(0, total))
    assert log2_choices(total, chosen) == pytest.approx(math.log2(math.comb(total, chosen)), abs=1e-6)


def test_the_loss_costs_as_much_for_twice_the_rows_as_for_twice_the_vocabulary() -> None:
    assert kernel_seconds(MACHINE, 2, 1000) == pytest.approx(2 * kernel_seconds(MACHINE, 1, 1000))
    assert kernel_seconds(MACHINE, 1, 2000) == pytest.approx(2 * kernel_seconds(MACHINE, 1, 1000))


def test_a_batch_costs_its_sequences_and_a_longer_sequence_more_than_its_tokens() -> None:
    shape = Shape(hidden=64, layers=3, inner=192)
    assert forward_flops(shape, 4, 32) == pytest.approx(4 * forward_flops(shape, 1, 32))
    assert forward_flops(shape, 1, 128) > 4 * forward_flops(shape, 1, 32)
    # The weights are read once, whatever the batch.
    assert forward_seconds(MACHINE, shape, 4, 32) < 4 * forward_seconds(MACHINE, shape, 1, 32)


@given(st.integers(1, 200), st.floats(1e-3, 1), st.floats(1e-4, 1e-2), st.integers(1, 32))
def test_callers_get_no_more_than_the_model_gives_and_no_less_with_company(
    clients: int, model: float, request: float, batch: int
) -> None:
    def rate(n: int) -> float:
        return requests_s(
            n, alone_seconds=model + request, request_seconds=request, batch=batch, full_batch_seconds=model
        )

    assert rate(clients) <= min(batch / model, 1 / request) * (1 + 1e-9)
    assert rate(clients) <= rate(clients + 1) * (1 + 1e-9)
    assert rate(1) == pytest.approx(min(1 / (model + request), batch / model))


def test_a_step_is_shorter_with_more_workers_until_they_share_cores() -> None:
    def step(workers: int) -> float:
        return step_seconds(workers, shards=8, cores=4, shard_seconds=1.0, update_seconds=0.1, sum_seconds=0.0)

    assert [step(workers) for workers in (1, 2, 4)] == pytest.approx([8.1, 4.1, 2.1])
    assert step(8) == pytest.approx(2.2)
    # Of three workers one has three of the eight micro-shards, and the others wait for it.
    assert step(3) == pytest.approx(3.1)


def test_two_workers_only_exchange_and_more_of_them_also_add() -> None:
    def seconds(workers: int) -> float:
        return sum_seconds(MACHINE, 1000, 1e6, workers, cores=8, bytes_s=1e9)

    assert seconds(2) == pytest.approx(1e-3)
    assert seconds(3) > seconds(2)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_point_is_as_far_off_when_it_is_twice_as_when_it_is_half(measured: float, predicted: float) -> None:
    ratio = Point("c", "V", 1, measured, predicted, "s", "apart").ratio
    assert ratio >= 1
    assert ratio == pytest.approx(Point("c", "V", 1, predicted, measured, "s", "apart").ratio)
