"""How much do a sequence's neighbours in a batch change its answer?

The low bits of a matrix product depend on its shape, so an answer depends a little on what shares its batch.
"""

from __future__ import annotations

import pydoc_data.topics

from benchmarks._result import Result, Value
from stillhouse.models import DtypeName, load_causal_lm, load_tokenizer, resolve_model
from stillhouse.request import All, Sequence
from teacher_service.backends.transformers import TransformersBackend

LENGTHS = (64, 17, 40, 64, 5, 33, 50, 64)
DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")


def measure(quick: bool) -> Result:
    """Ask the real SmolLM2 about eight sequences of real text together and alone, in float32 and bfloat16.

    Figures: the largest difference of a logit, and the largest KL between the two answers to one position, in nats.
    """
    folder = resolve_model("smollm2")
    text = "\n".join(pydoc_data.topics.topics.values())[:40_000]
    ids = load_tokenizer(folder)(text)["input_ids"]
    lengths = LENGTHS[:4] if quick else LENGTHS
    sequences = [Sequence(tuple(ids[200 * i : 200 * i + length]), positions=All()) for i, length in enumerate(lengths)]
    table: list[dict[str, Value]] = []
    figures: dict[str, float] = {}
    for dtype in DTYPES:
        backend = TransformersBackend(load_causal_lm(folder, dtype=dtype), name="smollm2")
        together = backend.forward(sequences).rows
        difference = divergence = largest = 0.0
        for sequence, rows in zip(sequences, together, strict=True):
            ours = backend.head(rows).float()
            alone = backend.head(backend.forward([sequence]).rows[0]).float()
            difference = max(difference, float((ours - alone).abs().max()))
            largest = max(largest, float(alone.abs().max()))
            terms = alone.softmax(-1) * (alone.log_softmax(-1) - ours.log_softmax(-1))
            divergence = max(divergence, float(terms.sum(-1).max()))
        table.append(
            {"dtype": dtype, "largest_logit": largest, "largest_difference": difference, "largest_kl": divergence}
        )
        figures[f"{dtype}_largest_difference"] = difference
        figures[f"{dtype}_largest_kl"] = divergence
    # A difference beyond these is no rounding: padding or a neighbour leaks into the answer.
    assert figures["float32_largest_difference"] < 1e-3, figures
    assert figures["bfloat16_largest_kl"] < 0.1, figures
    return Result("neighbours", 1, table, figures)
