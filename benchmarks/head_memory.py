"""How much memory does an answer take that never holds all logits of all positions at once?

Each way runs in a process of its own, whose peak is read while the hidden states become an answer's bytes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import partial

import torch
from torch import Tensor

from benchmarks._peak_memory import apart, peak_bytes
from benchmarks._result import Result, Value
from stillhouse.encodings import Candidates, Encoding, Hidden, Sampled, TopK
from stillhouse.payloads import OutputHead
from stillhouse.request import All, Sequence
from teacher_service.backends import BackendDescription, HiddenRows, TeacherBackend
from teacher_service.batching import Computed, Job
from teacher_service.computing import BatchComputer
from teacher_service.metrics import Metrics

HIDDEN_SIZE, VOCABULARY_SIZE = 576, 49_152  # SmolLM2's
ENCODINGS: dict[str, Encoding] = {
    "top_k": TopK(64),
    "sampled": Sampled(50),
    "candidates": Candidates(range(0, 640, 10)),
    "hidden": Hidden(),
}
HEAD_CHUNK_ROWS = (256, 64)


def measure(quick: bool) -> Result:
    """Answer one request for all of 4,096 positions (512 when quick), V = 49,152, in float32.

    The plain way holds `[positions, V]` and takes its 64 largest and the log-normaliser.
    `peak_memory_over_plain` is TOP_K's peak with 256 rows of the head at once, over the plain way's.
    """
    positions = 512 if quick else 4096
    plain = _peak_of(partial(_plain, positions))
    table: list[dict[str, Value]] = [_row("plain top 64", None, plain, plain)]
    figures = {}
    for rows in HEAD_CHUNK_ROWS:
        for name, encoding in ENCODINGS.items():
            peak = _peak_of(partial(_answer, encoding, positions, rows))
            table.append(_row(name, rows, peak, plain))
            figures[f"{name}_{rows}_rows_over_plain"] = peak / plain
    figures = {"peak_memory_over_plain": figures["top_k_256_rows_over_plain"], **figures}
    return Result("head_memory", 1, table, figures)


def _row(name: str, rows: int | None, peak: int, plain: int) -> dict[str, Value]:
    one_chunk = None if rows is None else round(rows * VOCABULARY_SIZE * 4 / 2**20)
    return {
        "way": name,
        "head_chunk_rows": rows,
        "chunk_mib": one_chunk,
        "peak_mib": round(peak / 2**20, 1),
        "over_plain": round(peak / plain, 4),
    }


def _peak_of(work: Callable[[], Callable[[], object]]) -> int:
    return apart(partial(_measure_here, work), timeout_seconds=600)


def _measure_here(prepare: Callable[[], Callable[[], object]]) -> int:
    torch.set_num_threads(1)
    return peak_bytes(prepare())


class HeadAlone(TeacherBackend):
    """Hidden states that are there already, and the head of a real model's size."""

    def __init__(self, positions: int) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randn(positions, HIDDEN_SIZE, generator=generator).to(device)
        weight = torch.randn(VOCABULARY_SIZE, HIDDEN_SIZE, generator=generator) / math.sqrt(HIDDEN_SIZE)
        self._head = OutputHead(weight.to(device))
        self.head(self.rows[:16])  # what libraries set up when first used counts for neither way

    def describe(self) -> BackendDescription:
        """Describe a model of which nothing but the head is there."""
        return BackendDescription(
            "head", "", "", VOCABULARY_SIZE, HIDDEN_SIZE, 2**20, "float32", "any", "1", "none", "throughput"
        )

    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        """Return the same rows for each sequence."""
        return HiddenRows((self.rows,) * len(sequences), 0)

    def head(self, hidden_rows: Tensor) -> Tensor:
        """Return `[p, V]`."""
        return self._head.logits(hidden_rows)


def _plain(positions: int) -> Callable[[], object]:
    backend = HeadAlone(positions)

    @torch.inference_mode()
    def run() -> object:
        logits = backend.head(backend.rows)
        return torch.topk(logits, 64), torch.logsumexp(logits, 1)

    return run


def _answer(encoding: Encoding, positions: int, head_chunk_rows: int) -> Callable[[], object]:
    compute = BatchComputer(HeadAlone(positions), Metrics(), head_chunk_rows=head_chunk_rows)
    sequence = Sequence((0,) * positions, positions=All())

    def run() -> object:
        job = Job(sequence, encoding, 1.0, VOCABULARY_SIZE, None, asyncio.new_event_loop().create_future())
        (outcome,) = compute([job])
        assert isinstance(outcome, Computed), outcome
        return outcome

    return run
