"""What the plan says of a sum is what the sum then allocates and sends."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from student_worker.elastic import reduction
from student_worker.elastic.reduction import Collectives, GradientSum, ShardTree, gradient_sum, shard_ranges
from student_worker.elastic.sum_costs import sum_memory_bytes, sum_traffic_bytes
from tests.unit.student_worker.test_reduction import in_world

ELEMENTS = 10_007
PIECE = 1000

Kind = Literal["exact", "fast"]


def allocated(tree: GradientSum) -> int:
    if not isinstance(tree, ShardTree):
        return ELEMENTS * 4
    lent = [] if tree._lent is None else [tree._lent]
    partials = [*lent, *tree._tree.free, *(partial for _, partial in tree._tree.entries)]
    return sum(tensor.untyped_storage().nbytes() for tensor in [*partials, *tree._buffers.values()])


def add_all(tree: GradientSum, collectives: Collectives) -> None:
    tree.clear()
    for shard in shard_ranges(collectives.world_size, collectives.newcomers, tree.num_shards)[collectives.rank]:
        tree.add(shard, torch.ones(ELEMENTS))
    tree.total(collectives)


@pytest.mark.parametrize("kind", ["exact", "fast"])
@pytest.mark.parametrize("num_shards", [1, 2, 4, 8, 16])
def test_memory_is_what_the_neediest_worker_holds_after_every_number_of_workers(
    kind: Kind, num_shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduction, "PIECE_ELEMENTS", PIECE)
    trees = [gradient_sum(kind, num_shards, ELEMENTS) for _ in range(min(num_shards, 5))]
    for world_size in range(1, len(trees) + 1):

        def work(collectives: Collectives) -> None:
            add_all(trees[collectives.rank], collectives)

        for newcomers in {0, world_size - 1}:
            in_world(world_size, work, newcomers)
        held = max(map(allocated, trees))
        told = sum_memory_bytes(kind, num_shards, ELEMENTS, world_size)
        # Every worker holds its own past: none has been the neediest in each respect.
        assert held <= told <= held + 4 * PIECE * 2 * (num_shards.bit_length() + 1)


class Counted:
    """Collectives that count what a rank sends to the others, a ring's all-reduce in its known sum."""

    def __init__(self, inner: Collectives) -> None:
        self._inner, self.sent = inner, 0
        self.rank, self.world_size, self.newcomers = inner.rank, inner.world_size, inner.newcomers

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self.sent += 2 * tensor.nbytes * (self.world_size - 1) // self.world_size
        self._inner.all_reduce(tensor)

    def all_to_all(
        self, output: torch.Tensor, source: torch.Tensor, output_sizes: list[int], source_sizes: list[int]
    ) -> None:
        self.sent += 4 * sum(size for rank, size in enumerate(source_sizes) if rank != self.rank)
        self._inner.all_to_all(output, source, output_sizes, source_sizes)


@pytest.mark.parametrize("kind", ["exact", "fast"])
@pytest.mark.parametrize(("num_shards", "world_size"), [(4, 1), (4, 2), (4, 3), (8, 3), (8, 4), (2, 2), (16, 5)])
def test_traffic_is_what_the_busiest_worker_sends(
    kind: Kind, num_shards: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduction, "PIECE_ELEMENTS", PIECE)

    def work(collectives: Collectives) -> int:
        counted = Counted(collectives)
        add_all(gradient_sum(kind, num_shards, ELEMENTS), counted)
        return counted.sent

    told = sum_traffic_bytes(kind, num_shards, ELEMENTS, world_size)
    # The last piece is rounded up to whole slices.
    assert told <= max(in_world(world_size, work)) + 16 <= told * 1.1 + 16
