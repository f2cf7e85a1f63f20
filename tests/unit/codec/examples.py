"""One small payload of every kind, and random ones."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.encodings import ValueType
from stillhouse.payload_header import Kind
from stillhouse.payloads import (
    CandidateLogits,
    DenseLogits,
    HiddenStates,
    OutputHead,
    Payload,
    SampledCounts,
    TopKLogits,
)
from stillhouse.tensor_bytes import DTYPES

EXAMPLES: dict[str, Payload] = {
    "dense": DenseLogits(torch.tensor([[1.0, -2.0, 0.5]])),
    "hidden": HiddenStates(torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)),
    "top_k": TopKLogits(
        token_ids=torch.tensor([[7, 2]], dtype=torch.int32),
        logits=torch.tensor([[3.0, 1.0]], dtype=torch.float16),
        log_normalizer=torch.tensor([3.5]),
        log_tail_mass=torch.tensor([-2.0]),
        tempered_log_normalizer=torch.tensor([4.0]),
        tempered_log_tail_mass=torch.tensor([-1.0]),
        temperature=2.0,
        vocabulary_size=10,
    ),
    "sampled": SampledCounts(
        offsets=torch.tensor([0, 2, 3]),
        token_ids=torch.tensor([1, 8, 4], dtype=torch.int32),
        counts=torch.tensor([3, 1, 4], dtype=torch.int32),
        entropy=torch.tensor([1.5, 0.25]),
        draws=4,
        temperature=1.0,
        vocabulary_size=10,
    ),
    "candidates": CandidateLogits(
        token_ids=torch.tensor([0, 9], dtype=torch.int32),
        logits=torch.tensor([[1.0, 2.0]]),
        log_normalizer=torch.tensor([3.0]),
        log_tail_mass=torch.tensor([-2.0]),
        tempered_log_normalizer=torch.tensor([4.0]),
        tempered_log_tail_mass=torch.tensor([-1.0]),
        temperature=0.5,
        vocabulary_size=10,
    ),
    "position_candidates": CandidateLogits(
        token_ids=torch.tensor([[0, 9], [3, 4]], dtype=torch.int32),
        logits=torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float16),
        log_normalizer=torch.tensor([3.0, 5.0]),
        log_tail_mass=torch.tensor([-2.0, -3.0]),
        tempered_log_normalizer=torch.tensor([4.0, 6.0]),
        tempered_log_tail_mass=torch.tensor([-1.0, -4.0]),
        temperature=0.5,
        vocabulary_size=10,
    ),
}

HEAD = OutputHead(
    weight=torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.0]], dtype=torch.bfloat16),
    bias=torch.tensor([0.25, -0.5, 8.0], dtype=torch.bfloat16),
    scale=0.5,
    soft_cap=30.0,
)


def random_bits(dtype: torch.dtype, *shape: int, generator: torch.Generator) -> Tensor:
    """Values of any bits at all: NaN of every payload, infinities and subnormals included."""
    size = dtype.itemsize
    data = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8, generator=generator)
    return data.view(dtype)


def random_payload(kind: Kind, value_type: ValueType, rows: int, width: int, count: int, seed: int) -> Payload:
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[value_type]

    def statistic() -> Tensor:
        return random_bits(torch.float32, rows, generator=generator)

    def distinct_ids() -> Tensor:
        return torch.randperm(width, generator=generator)[:count].int()

    temperature = 0.25 + seed % 7
    match kind:
        case Kind.DENSE:
            return DenseLogits(random_bits(dtype, rows, width, generator=generator))
        case Kind.HIDDEN:
            return HiddenStates(random_bits(dtype, rows, width, generator=generator))
        case Kind.TOP_K:
            ids = torch.stack([distinct_ids() for _ in range(rows)]) if rows else torch.empty(0, count).int()
            logits = random_bits(dtype, rows, count, generator=generator)
            return TopKLogits(ids, logits, statistic(), statistic(), statistic(), statistic(), temperature, width)
        case Kind.CANDIDATES | Kind.POSITION_CANDIDATES:
            own = [distinct_ids().sort().values for _ in range(rows if kind is Kind.POSITION_CANDIDATES else 1)]
            ids = own[0] if kind is Kind.CANDIDATES else torch.cat([torch.empty(0).int(), *own]).view(rows, count)
            logits = random_bits(dtype, rows, count, generator=generator)
            return CandidateLogits(ids, logits, statistic(), statistic(), statistic(), statistic(), temperature, width)
        case Kind.OUTPUT_HEAD:
            raise AssertionError("an output head is no payload")
        case Kind.SAMPLED:
            draws = [torch.randint(0, width, (count,), generator=generator) for _ in range(rows)]
            found = [torch.unique(row, return_counts=True) for row in draws]
            offsets = torch.tensor([0, *(len(ids) for ids, _ in found)]).cumsum(0)
            empty = torch.empty(0, dtype=torch.int32)
            ids = torch.cat([empty, *(ids.int() for ids, _ in found)])
            counts = torch.cat([empty, *(counts.int() for _, counts in found)])
            return SampledCounts(offsets, ids, counts, statistic(), count, temperature, width)


@st.composite
def payloads(draw: st.DrawFn) -> Payload:
    kind = draw(st.sampled_from([kind for kind in Kind if kind is not Kind.OUTPUT_HEAD]))
    allowed: dict[Kind, list[ValueType]] = {
        Kind.DENSE: ["float32", "float16", "bfloat16"],
        Kind.HIDDEN: ["float32", "bfloat16"],
    }
    value_type = draw(st.sampled_from(allowed.get(kind, ["float32", "float16"])))
    width = draw(st.one_of(st.integers(1, 70), st.sampled_from([256, 1000])))
    count = draw(st.integers(1, 60 if kind is Kind.SAMPLED else width))
    return random_payload(kind, value_type, draw(st.integers(0, 6)), width, count, draw(st.integers(0, 2**32)))
