"""Which samples a step and a micro-shard consume: a pure function of the step, whoever computes it.

Step s takes the G samples at positions s * G, ..., s * G + G - 1 of the one global order; micro-shard m of M takes
those from m * G // M up to (m + 1) * G // M among them, so that parts differ by at most one sample.
"""

from __future__ import annotations

from functools import lru_cache

from stillhouse.data import Order, Sample
from student_worker.batches import Counts, count
from student_worker.corpus import Samples

COUNTS_REMEMBERED = 64


class Steps:
    """The samples of every step.

    Args:
        dataset: the training part.
        order: over its samples.
        global_batch_size: G.
        micro_shards: M, at most G.
    """

    def __init__(self, dataset: Samples, order: Order, global_batch_size: int, micro_shards: int) -> None:
        self._dataset = dataset
        self._order = order
        self.global_batch_size = global_batch_size
        self.micro_shards = micro_shards
        self.counts = lru_cache(maxsize=COUNTS_REMEMBERED)(self._counts)
        """The denominators of a step's loss, over its whole global batch, and its tokens."""

    def sample_ids(self, step: int) -> list[int]:
        """Return the G sample ids of a step, in order."""
        ids: list[int] = self._order.sample_ids(step * self.global_batch_size, self.global_batch_size).tolist()
        return ids

    def shard_ids(self, step: int) -> list[list[int]]:
        """Return the sample ids of each micro-shard of a step, in order."""
        ids, size, parts = self.sample_ids(step), self.global_batch_size, self.micro_shards
        return [ids[shard * size // parts : (shard + 1) * size // parts] for shard in range(parts)]

    def shard(self, step: int, shard: int) -> list[Sample]:
        """Return the samples of one micro-shard of a step, in order."""
        return self._samples(self.shard_ids(step)[shard])

    def _counts(self, step: int) -> Counts:
        return count(self._samples(self.sample_ids(step)))

    def _samples(self, ids: list[int]) -> list[Sample]:
        return [self._dataset[index] for index in ids]
