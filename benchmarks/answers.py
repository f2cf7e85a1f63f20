"""What do answers leave of a model's own forward speed?

A batch is computed as the service computes it, in every encoding, beside the model's body alone and its body and head
with nothing made of the logits. The weights are random, as speed does not depend on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks._measure import interleave
from benchmarks._result import Result, Value
from stillhouse.codec import decode_payload
from stillhouse.encoding_text import format_encoding
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.request import All, Sequence
from teacher_service.backends.transformers import TransformersBackend
from teacher_service.batching import Computed, Job
from teacher_service.computing import BatchComputer
from teacher_service.freed_memory import keep_freed_memory
from teacher_service.metrics import Metrics
from teacher_service.settings import TeacherSettings

ENCODINGS: tuple[Encoding, ...] = (Hidden(), TopK(64), TopK(256), Sampled(50), Candidates((1, 2, 3)), Dense("bfloat16"))


@dataclass(frozen=True, slots=True)
class Size:
    """A model's shape, and the batch that it answers."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    dtype: torch.dtype
    sequences: int
    tokens: int
    """Of each sequence."""


QUICK = Size(4096, 64, 128, 2, 4, 2, torch.float32, 2, 32)
ON_CPU = Size(49_152, 576, 1536, 30, 9, 3, torch.float32, 4, 32)
"""SmolLM2-135M's shape."""
ON_GPU = Size(151_936, 3584, 18_944, 28, 28, 4, torch.bfloat16, 8, 512)
"""Qwen2.5-7B's shape."""


def measure(quick: bool) -> Result:
    """Time each encoding; a figure is the body's least time over that of the whole answer."""
    keep_freed_memory()  # as the service does
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = QUICK if quick else ON_GPU if device.type == "cuda" else ON_CPU
    rounds = 2 if quick else 5 if device.type == "cuda" else 3
    backend = TransformersBackend(_model(size, device), name="random")
    chunk_rows: int = TeacherSettings.model_fields["head_chunk_rows"].default
    compute = BatchComputer(backend, Metrics(), head_chunk_rows=chunk_rows)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size.vocabulary, (size.sequences, size.tokens), generator=generator)
    sequences = [Sequence(tuple(row.tolist()), positions=All()) for row in ids]
    contestants: dict[str, Callable[[], object]] = {
        "body": partial(backend.forward, sequences),
        "body and head": partial(_body_and_head, backend, sequences, chunk_rows),
        **{format_encoding(one): partial(_answer, backend, compute, sequences, one) for one in ENCODINGS},
    }
    for encoding in ENCODINGS:
        for payload in _answer(backend, compute, sequences, encoding):
            assert decode_payload(payload).num_positions == size.tokens
    timings = interleave(contestants, rounds, warm_up_rounds=1)
    body = timings["body"].minimum
    tokens = size.sequences * size.tokens
    table: list[dict[str, Value]] = [
        {
            "contestant": name,
            **timing.milliseconds(),
            "tokens_s": round(tokens / timing.minimum, 1),
            "of_body_speed": round(body / timing.minimum, 3),
        }
        for name, timing in timings.items()
    ]
    figures = {
        f"{name}_over_body": body / timings[format_encoding(encoding)].minimum
        for name, encoding in (("hidden", Hidden()), ("topk64", TopK(64)), ("sampled50", Sampled(50)))
    }
    figures["head_over_body"] = body / timings["body and head"].minimum
    return Result("answers", rounds, table, figures)


def _model(size: Size, device: torch.device) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(size.dtype)
        try:
            model: Any = Qwen2ForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
    return model.eval()


def _body_and_head(backend: TransformersBackend, sequences: list[Sequence], chunk_rows: int) -> None:
    for rows in backend.forward(sequences).rows:
        for part in torch.split(rows, chunk_rows):
            backend.head(part)


def _answer(
    backend: TransformersBackend, compute: BatchComputer, sequences: list[Sequence], encoding: Encoding
) -> list[bytes | memoryview]:
    """Answer all of them in one batch."""
    loop = asyncio.new_event_loop()
    width = backend.describe().vocabulary_size
    jobs = [Job(one, encoding, 1.0, width, None, loop.create_future()) for one in sequences]
    outcomes = compute(jobs)
    loop.close()
    payloads = []
    for outcome in outcomes:
        assert isinstance(outcome, Computed), outcome
        payloads.append(outcome.payload)
    return payloads
