"""The few numbers that workers exchange with a step's gradients: losses, which samples they are of, and a wish to stop.

One float64 row a micro-shard: loss, cross-entropy, KL, number of samples, checksum of their ids, stop. The sum over
workers is exact: all but the last column of row 0 come from one worker each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.errors import GuardError
from student_worker.elastic.group import Membership
from student_worker.shard_step import ShardLoss

NUM_SCALARS = 6
NUM_SAMPLES, CHECKSUM, STOP = 3, 4, 5

_CHECKSUM_BYTES = 6
"""A float64 holds every integer below 2^53."""


def shard_scalars(loss: ShardLoss, sample_ids: Sequence[int]) -> Tensor:
    """Return the row `[6]` of a micro-shard that was computed over these samples."""
    values = [loss.loss, loss.cross_entropy, loss.kl, len(sample_ids), checksum(sample_ids), 0]
    return torch.tensor(values, dtype=torch.float64)


def checksum(sample_ids: Sequence[int]) -> int:
    """Return a number below 2^48 that stands for these samples in this order."""
    digest = hashlib.blake2b(np.asarray(sample_ids, dtype="<i8").tobytes(), digest_size=_CHECKSUM_BYTES)
    return int.from_bytes(digest.digest(), "little")


def check_samples(scalars: Tensor, shards: Sequence[Sequence[int]], step: int) -> None:
    """See that every micro-shard of a step was computed, whoever did it, over the samples of this worker's own order.

    Args:
        scalars: `[M, 6]`, of all workers.
        shards: the sample ids of each micro-shard.
        step: committed steps.

    Raises:
        GuardError: a peer computed other samples, or a part of the step is nobody's.
    """
    for shard, ids in enumerate(shards):
        theirs = (int(scalars[shard, NUM_SAMPLES]), int(scalars[shard, CHECKSUM]))
        if theirs != (len(ids), checksum(ids)):
            raise GuardError(
                f"step {step + 1}: micro-shard {shard} was computed over {theirs[0]} samples of checksum "
                f"{theirs[1]:012x}, and this worker's order has {len(ids)} of {checksum(ids):012x} there; no weight "
                "was moved. A worker has other data or another release: see that all have the same, and resume"
            )


def sample_line(membership: Membership, step: int, shards: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return what samples.jsonl holds of a step besides its number: who computed which samples."""
    ranges = membership.all_shards(step, len(shards))
    rank_of = {shard: rank for rank, theirs in enumerate(ranges) for shard in theirs}
    told = [{"shard": shard, "rank": rank_of[shard], "sample_ids": list(ids)} for shard, ids in enumerate(shards)]
    return {"world_size": membership.world_size, "shards": told}
