"""What does a sum of gradients cost whose bits do not depend on the number of workers?

Whole steps of real workers over gloo, by the exact sum and by the plain all-reduce, one after the other in every round.
"""

from __future__ import annotations

from benchmarks._measure import Timing
from benchmarks._reduction_worker import BATCH_BLOCKS, BLOCK_TOKENS, SHARDS, Size
from benchmarks._result import Result, Value
from benchmarks._workers import run_workers
from student_worker.elastic.sum_costs import sum_memory_bytes, sum_traffic_bytes

WORLDS = (1, 2, 3)


def measure(quick: bool) -> Result:
    """Step a random Llama of 54 million parameters (1 million in the quick form) with one thread for each worker.

    A step is forward and backward over 8 blocks of 64 tokens, the sum over micro-shards and workers, and AdamW.
    `exact_over_fast_step_time` is the largest ratio of the two sums' whole steps, each in its fastest round, over 1, 2
    and 3 workers and 4 and 8 micro-shards; the rows have each, and what a worker holds and sends for the sum.
    """
    rounds = 2
    size = Size(vocabulary=2_000, hidden=128, layers=2) if quick else Size(vocabulary=32_000, hidden=512, layers=12)
    table: list[dict[str, Value]] = []
    figures: dict[str, float] = {}
    for world_size in WORLDS:
        elements, timings = _run(world_size, size, rounds)
        for shards in SHARDS:
            times = {}
            for kind in ("fast", "exact"):
                timing = timings[f"{kind}-{shards}"]
                times[kind] = timing.minimum
                table.append(
                    {
                        "workers": world_size,
                        "micro_shards": shards,
                        "reduction": kind,
                        "parameters": elements,
                        "tokens": BATCH_BLOCKS * BLOCK_TOKENS,
                        **timing.milliseconds(),
                        "sum_memory_bytes": sum_memory_bytes(kind, shards, elements, world_size),
                        "sum_traffic_bytes": sum_traffic_bytes(kind, shards, elements, world_size),
                    }
                )
            figures[f"exact_over_fast_{world_size}_workers_{shards}_shards"] = times["exact"] / times["fast"]
    return Result("reduction", rounds, table, {"exact_over_fast_step_time": max(figures.values()), **figures})


def _run(world_size: int, size: Size, rounds: int) -> tuple[int, dict[str, Timing]]:
    """Run the workers of one world; return the number of parameters and each contestant's timing, as rank 0 saw it."""
    sizes = (rounds, size.vocabulary, size.hidden, size.layers)
    answer = run_workers("benchmarks._reduction_worker", world_size, *sizes)
    return answer["elements"], {name: Timing(*seconds) for name, seconds in answer["seconds"].items()}
