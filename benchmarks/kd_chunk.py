"""How many elements should a chunk of the loss's rows hold on a CPU?

Too few pay for calls, too many leave the core's cache. `stillhouse.kd.rows.CPU_CHUNK_ELEMENTS` is what this found.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from benchmarks._measure import interleave
from benchmarks._result import Result, Value
from stillhouse.kd.rows import CPU_CHUNK_ELEMENTS, DenseRows, RowKernel, RowWeights

TEMPERATURE = 2.0


def measure(quick: bool) -> Result:
    """Time the dense kernel at vocabularies of several sizes; the figure is the chosen chunk's cost over the best.

    Medians are compared: so many contestants meet so few quiet moments that the least times are a matter of luck.
    """
    elements, rounds = (2**17, 2) if quick else (2**23, 7)
    widths = (1024,) if quick else (1024, 32_000, 49_152, 151_936)
    table: list[dict[str, Value]] = []
    worst = 1.0
    for width in widths:
        rows = max(1, elements // width)
        contestants = {str(chunk): _contestant(rows, width, chunk) for chunk in _chunks(rows * width)}
        timings = interleave(contestants, rounds)
        best = min(timing.median for timing in timings.values())
        for chunk, timing in timings.items():
            over_best = timing.median / best
            table.append(
                {
                    "vocabulary": width,
                    "chunk_elements": int(chunk),
                    "rows_of_a_chunk": max(1, int(chunk) // width),
                    **timing.milliseconds(),
                    "over_best": round(over_best, 3),
                }
            )
            if int(chunk) == CPU_CHUNK_ELEMENTS:
                worst = max(worst, over_best)
    return Result("kd_chunk", rounds, table, {"chosen_over_best": worst})


def _chunks(elements: int) -> list[int]:
    return [2**power for power in range(13, min(23, int(math.log2(elements)) + 1))]


def _contestant(rows: int, width: int, chunk_elements: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(rows, width, generator=generator) for _ in range(2))
    labels = torch.randint(0, width, (rows,), generator=generator)
    gradient = torch.empty_like(student)
    kernel = RowKernel(
        width,
        dtype=torch.float32,
        device=student.device,
        temperature=TEMPERATURE,
        weights=RowWeights(0.5 / rows, 0.5 * TEMPERATURE / rows),
        chunk_elements=chunk_elements,
    )

    def run() -> None:
        for start in range(0, rows, kernel.max_rows):
            chunk = slice(start, start + kernel.max_rows)
            kernel.run(student[chunk], DenseRows(teacher[chunk]), labels[chunk], gradient[chunk])

    return run
