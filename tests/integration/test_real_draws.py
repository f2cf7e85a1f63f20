"""Draws from the real SmolLM2: how many bytes they take, and that they are of its distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.codec import encode_payload
from stillhouse.encode import encode_logits
from stillhouse.encodings import Sampled
from stillhouse.models import load_causal_lm, load_tokenizer, resolve_model
from stillhouse.payloads import SampledCounts
from stillhouse.request import All, Sequence

pytestmark = [pytest.mark.real_weights, pytest.mark.timeout(600)]

POSITIONS, DRAWS = 512, 50


@pytest.fixture(scope="module")
def asked() -> tuple[Sequence, Tensor]:
    """The first 512 tokens of the licence, a text that no edit changes, and the model's logits for them."""
    folder = resolve_model("smollm2")
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = tuple(load_tokenizer(folder)(text).input_ids[:POSITIONS])
    assert len(ids) == POSITIONS
    model: Any = load_causal_lm(folder)
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return Sequence(ids, positions=All()), logits


def sampled(asked: tuple[Sequence, Tensor], seed: int = 0) -> SampledCounts:
    sequence, logits = asked
    encoding = Sampled(DRAWS, seed)
    payload = encode_logits([logits], encoding, sequence=sequence, temperature=1.0, vocabulary_size=logits.shape[1])
    assert isinstance(payload, SampledCounts)
    return payload


def test_fifty_draws_take_well_under_forty_bytes_a_position(asked: tuple[Sequence, Tensor]) -> None:
    payload = sampled(asked)
    # Of this text 16 ids in 50 draws are distinct, of others up to 23, and each takes 10 to 11 bits.
    distinct = len(payload.token_ids) / POSITIONS
    assert distinct > 15
    assert len(encode_payload(payload)) / POSITIONS <= 34  # so that a text of 23 stays within 40 or so


def test_draws_have_the_entropy_of_what_they_are_drawn_from(asked: tuple[Sequence, Tensor]) -> None:
    log_p = asked[1].double().log_softmax(-1)
    payload = sampled(asked)
    entropy = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(payload.entropy.double(), entropy, rtol=1e-6, atol=1e-6)
    # The mean of -log p over draws estimates the entropy; its variance is known, so six of its deviations are a bound.
    rows = torch.arange(POSITIONS).repeat_interleave(payload.offsets.diff())
    seen = -(log_p[rows, payload.token_ids.long()] * payload.counts).sum() / DRAWS
    variance = ((log_p.exp() * log_p**2).sum(-1) - entropy**2).sum() / DRAWS
    assert abs(float(seen - entropy.sum())) < 6 * float(variance) ** 0.5
