"""What a sum of gradients costs: the memory that a worker holds for it, and the bytes that it sends.

Follows from the shapes alone, so that a plan can tell it before anything is allocated. What the collectives' library
holds for itself is not counted, nor the gradient that is being added.
"""

from __future__ import annotations

from typing import Literal

from student_worker.elastic.reduction import blocks_of, shard_range, slice_elements

BYTES = 4
"""Of one float32 of a gradient."""

Kind = Literal["exact", "fast"]


def sum_memory_bytes(kind: Kind, num_shards: int, num_elements: int, max_workers: int = 1) -> int:
    """Return what a worker's sum takes at most, beside the gradient that is being added.

    Buffers are kept from step to step, so the number of workers counts by its most demanding value so far.

    Args:
        kind: the recipe's `reduction`.
        num_shards: M.
        num_elements: n, the trained parameters.
        max_workers: how many workers may ever take part.
    """
    if kind == "fast":
        return BYTES * num_elements
    partials = scratch = 0
    for workers in range(1, max_workers + 1):
        ranges = _ranges(workers, num_shards)
        partials = max(partials, *map(_most_partials, ranges))
        # Two workers need it in the step in which one of them is a newcomer.
        if workers > 1:
            counts = [len(blocks_of(shards)) for shards in ranges]
            width = slice_elements(num_elements, workers)
            scratch = max(scratch, (workers * (1 + max(counts)) + workers + sum(counts)) * width)
    return BYTES * (partials * num_elements + scratch)


def sum_traffic_bytes(kind: Kind, num_shards: int, num_elements: int, workers: int) -> int:
    """Return what the worker that sends most sends in a step, among so many workers; it gets about as much.

    Args are those of `sum_memory_bytes`.
    """
    if workers == 1:
        return 0
    ranges = _ranges(workers, num_shards)
    gradients = 2  # a ring's all-reduce: every slice once around to be summed, once around to be told
    if kind == "exact" and not _is_one_addition(ranges):
        gradients = 1 + max(len(blocks_of(shards)) for shards in ranges)
    return gradients * BYTES * num_elements * (workers - 1) // workers


def _ranges(workers: int, num_shards: int) -> list[range]:
    return [shard_range(rank, workers, num_shards) for rank in range(workers)]


def _is_one_addition(ranges: list[range]) -> bool:
    return len(ranges) == 2 and all(len(blocks_of(shards)) == 1 for shards in ranges)


def _most_partials(shards: range) -> int:
    """Return how many partial sums a worker holds at most while it adds its shards in order."""
    return max(
        (len(blocks_of(range(shards.start, end))) for end in range(shards.start + 1, shards.stop + 1)), default=0
    )
