"""What do answers cost whose bytes follow from their request alone?

In deterministic mode every document is a row of a fixed shape, and the head runs for each sequence by itself.
"""

from __future__ import annotations

import asyncio
import pydoc_data.topics
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks._measure import Timing, interleave
from benchmarks._result import Result, Value
from stillhouse.encodings import TopK
from stillhouse.models import load_causal_lm, load_tokenizer, resolve_model
from stillhouse.request import All, Last, Positions, Sequence
from teacher_service.backends.transformers import TransformersBackend
from teacher_service.batch_choice import choose_batch
from teacher_service.batching import Computed, Job
from teacher_service.computing import BatchComputer
from teacher_service.metrics import Metrics
from teacher_service.settings import TeacherSettings

# Tokens of the sequences of each mix: chat turns, documents as they are trained on, and both.
MIXES: dict[str, tuple[int, ...]] = {
    "mixed": (24, 37, 52, 75, 96, 130, 160, 201, 256, 301, 384, 512),
    "short": (6, 8, 9, 11, 12, 14, 16, 18, 21, 24, 27, 30) * 2,
    "long": (256, 300, 341, 412, 480, 512),
}
QUICK_TOKENS = 48
# Modes by name: what `pass_tokens` is of the backend.
MODES: dict[str, int | None] = {"throughput": None, "deterministic": 1, "deterministic_128": 128}


def measure(quick: bool) -> Result:
    """Answer three mixes of real text with TOP_K 64 by the real SmolLM2 in float32, in each mode.

    `throughput_kept` is the tokens per second of deterministic mode, as it is on the CPU, over those of throughput
    mode, each in its fastest round, for the mix of chat turns and documents; `short_` and `long_throughput_kept` for
    the others, and `short_128_` where short documents share passes of 128 tokens.
    """
    folder = resolve_model("smollm2")
    model = load_causal_lm(folder, dtype="float32")
    text = "\n".join(pydoc_data.topics.topics.values())[:60_000]
    ids = load_tokenizer(folder)(text)["input_ids"]
    computers = {}
    for mode, pass_tokens in MODES.items():
        backend = TransformersBackend(model, name="smollm2", pass_tokens=pass_tokens)
        computers[mode] = (backend, BatchComputer(backend, Metrics(), head_chunk_rows=_setting("head_chunk_rows")))
    rounds = 1 if quick else 2
    alone = [_sequence(ids, 0, 16, Last())]
    for parts in computers.values():
        _answer(*parts, alone)
    table: list[dict[str, Value]] = []
    figures: dict[str, float] = {}
    for mix, lengths in MIXES.items():
        chosen = [min(length, QUICK_TOKENS) for length in lengths[::6]] if quick else lengths
        sequences = [_sequence(ids, index, length, All()) for index, length in enumerate(chosen)]
        contestants = {mode: partial(_answer, *parts, sequences) for mode, parts in computers.items()}
        timings = interleave(contestants, rounds, warm_up_rounds=0)
        speeds = {mode: sum(chosen) / timing.minimum for mode, timing in timings.items()}
        for mode, timing in timings.items():
            table.append(_row(mix, mode, sum(chosen), timing))
        prefix = "" if mix == "mixed" else f"{mix}_"
        figures[f"{prefix}throughput_kept"] = speeds["deterministic"] / speeds["throughput"]
        if mix == "short":
            figures["short_128_throughput_kept"] = speeds["deterministic_128"] / speeds["throughput"]
    for mode, timing in interleave({m: partial(_answer, *p, alone) for m, p in computers.items()}, rounds).items():
        table.append(_row("one of 16", mode, 16, timing))
    return Result("deterministic", rounds, table, figures)


def _row(mix: str, mode: str, tokens: int, timing: Timing) -> dict[str, Value]:
    speed = round(tokens / timing.minimum, 1)
    return {"mix": mix, "mode": mode, "tokens": tokens, "tokens_s": speed, **timing.milliseconds()}


def _setting(name: str) -> Any:
    return TeacherSettings.model_fields[name].default


def _sequence(ids: list[int], index: int, length: int, positions: Positions) -> Sequence:
    start = 520 * index
    return Sequence(tuple(ids[start : start + length]), positions=positions)


def _answer(backend: TransformersBackend, compute: Callable[[Any], Any], sequences: list[Sequence]) -> None:
    """Answer all of them, in the batches that the service would make."""
    loop = asyncio.new_event_loop()
    waiting = [
        Job(one, TopK(64), 1.0, backend.describe().vocabulary_size, None, loop.create_future()) for one in sequences
    ]
    while waiting:
        lengths = [job.num_tokens for job in waiting]
        chosen, _ = choose_batch(lengths, _setting("max_batch_tokens"), backend.padded_tokens)
        outcomes = compute([waiting[index] for index in chosen])
        assert all(isinstance(outcome, Computed) for outcome in outcomes), outcomes
        waiting = [job for index, job in enumerate(waiting) if index not in set(chosen)]
    loop.close()
