"""One worker of the curves over workers: sums gradients and takes steps with its peers; rank 0 tells what they took."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks._measure import interleave
from benchmarks._reduction_worker import PATIENCE, Size, Stepper, make_model
from student_worker.elastic.collectives import ProcessGroupCollectives, process_group
from student_worker.elastic.reduction import Collectives, ShardTree, shard_range

SHARDS = 4


class Counted:
    """Collectives that count what this rank sends to the others; of a ring's all-reduce what is known of it."""

    newcomers = 0

    def __init__(self, inner: ProcessGroupCollectives) -> None:
        self._inner = inner
        self.rank, self.world_size = inner.rank, inner.world_size
        self.sent_bytes = 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Count two gradients but for this rank's own slices."""
        self.sent_bytes += 2 * tensor.nbytes * (self.world_size - 1) // self.world_size
        self._inner.all_reduce(tensor)

    def all_to_all(self, output: Tensor, source: Tensor, output_sizes: list[int], source_sizes: list[int]) -> None:
        """Count what does not stay here."""
        self.sent_bytes += source.element_size() * (sum(source_sizes) - source_sizes[self.rank])
        self._inner.all_to_all(output, source, output_sizes, source_sizes)


class Summer:
    """The exact sum over M micro-shards, each gradient made of numbers whose sum depends on the order."""

    def __init__(self, elements: int, collectives: Collectives | None) -> None:
        self._tree = ShardTree(SHARDS, elements)
        self._collectives = collectives
        self._gradients = [_gradient(shard, elements) for shard in range(SHARDS)]
        self._mine = shard_range(*((collectives.rank, collectives.world_size) if collectives else (0, 1)), SHARDS)

    def add(self) -> None:
        """Add this rank's micro-shards."""
        self._tree.clear()
        for shard in self._mine:
            self._tree.add(shard, self._gradients[shard])

    def total(self) -> Tensor:
        """Return the sum over all ranks."""
        return self._tree.total(self._collectives)

    def add_and_total(self) -> None:
        """Sum from the beginning."""
        self.add()
        self.total()

    def check(self) -> None:
        """See that the bits are those of one worker alone."""
        alone = ShardTree(SHARDS, len(self._gradients[0]))
        for shard, gradient in enumerate(self._gradients):
            alone.add(shard, gradient)
        self.add()
        assert torch.equal(self.total(), alone.total(None))


def _gradient(shard: int, elements: int) -> Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(shard))


def main() -> None:
    """Run one worker: port, world size, rounds, elements of the sum, then the size of the student, rank."""
    port, world_size, rounds, elements, vocabulary, hidden, layers, rank = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    collectives = counted = None
    if world_size > 1:
        group = process_group(torch.device("cpu"), PATIENCE)
        group.max_workers = world_size
        group.configure(f"127.0.0.1:{port}/cost", f"worker-{rank}", rank, world_size)
        collectives = ProcessGroupCollectives(group, rank, world_size, 0)
        counted = Counted(collectives)
    summer = Summer(elements, counted)
    summer.check()
    if counted is not None:
        counted.sent_bytes = 0
    summer.add_and_total()
    sent_bytes = counted.sent_bytes if counted is not None else 0
    stepper = Stepper(make_model(Size(vocabulary, hidden, layers)), collectives)
    tree, plain = ShardTree(SHARDS, stepper.num_elements), torch.ones(elements)
    contestants: dict[str, Callable[[], object]] = {
        "add": summer.add,
        "add and total": summer.add_and_total,
        "all-reduce": partial(collectives.all_reduce, plain) if collectives else lambda: None,
        "compute": partial(stepper.compute, tree),
        "update": partial(stepper.update, torch.zeros(stepper.num_elements)),
        "step": stepper.contestant("exact", SHARDS),
    }
    timings = interleave(contestants, rounds)
    if rank == 0:
        seconds = {name: timing.minimum for name, timing in timings.items()}
        told = {"parameters": stepper.num_elements, "sent_bytes": sent_bytes, "seconds": seconds}
        print(json.dumps(told))


if __name__ == "__main__":
    main()
