"""Draws as the service gives them: fair, by the model's own distribution, and the same again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from stillhouse.client import TeacherClient
from stillhouse.encodings import Sampled
from stillhouse.payloads import SampledCounts
from stillhouse.request import All, LogitsRequest, Sequence
from tests.torture.mix import SMALLER_VOCABULARY, scaled
from tests.torture.reference import VOCABULARY_SIZE, Reference
from tests.torture.service_process import ServiceProcess, serving

DRAWS = 50
TOKENS = 64
AT_ONCE = 16


@pytest.mark.long
async def test_draws_are_fair_at_every_temperature_and_vocabulary(
    model: Path, reference: Reference, tmp_path: Path
) -> None:
    with serving(tmp_path, model, "--dtype", "float32") as service:
        for seed, (temperature, n) in enumerate([(1.0, 0), (0.5, 0), (4.0, SMALLER_VOCABULARY)]):
            z_N, z_entropy = deviations(service, reference, temperature, n, seed)
            # Each is a standard normal number where the draws are fair.
            assert abs(z_entropy) < 5
            assert float(z_N.abs().max()) < 6
            assert 0.7 < float(z_N.square().mean()) < 1.3


def deviations(
    service: ServiceProcess, reference: Reference, temperature: float, n: int, seed: int
) -> tuple[torch.Tensor, float]:
    """Return by how many standard deviations ids were drawn too often, and their mean log-probability is too high."""
    draw, size = random.Random(seed), n or VOCABULARY_SIZE
    drawn, expected, variance = torch.zeros(3, size, dtype=torch.float64)
    surplus = spread = 0.0
    with TeacherClient(service.grpc) as client:
        for number in range(scaled(12, 2)):
            rows = (tuple(draw.randrange(VOCABULARY_SIZE) for _ in range(TOKENS)) for _ in range(AT_ONCE))
            request = LogitsRequest(
                tuple(Sequence(row, (), All()) for row in rows), Sampled(DRAWS, number), temperature, n
            )
            payloads = client.answer(request).payloads
            assert not reference.mistakes(request, payloads)
            for sequence, payload in zip(request.sequences, payloads, strict=True):
                assert isinstance(payload, SampledCounts)
                log_p_PN = torch.log_softmax(reference.logits(sequence)[:, :size] / temperature, dim=1)
                p_PN = log_p_PN.exp()
                row = torch.repeat_interleave(torch.arange(len(p_PN)), payload.offsets.diff())
                ids, counts = payload.token_ids.long(), payload.counts.double()
                drawn.index_add_(0, ids, counts)
                expected += DRAWS * p_PN.sum(dim=0)
                variance += DRAWS * (p_PN * (1 - p_PN)).sum(dim=0)
                mean_P = (p_PN * log_p_PN).sum(dim=1)
                surplus += float((counts * log_p_PN[row, ids]).sum() - DRAWS * mean_P.sum())
                spread += float(DRAWS * ((p_PN * log_p_PN.square()).sum(dim=1) - mean_P.square()).sum())
    often = expected > 20  # rarer ones are no normal numbers yet
    assert int(often.sum()) > size // 10
    return ((drawn - expected) / variance.sqrt())[often], surplus / spread**0.5
