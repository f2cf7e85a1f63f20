"""The group of workers that trains together: who takes part in a step, the sum over all, the vote at its end.

A step of the trainer is

    membership = group.start_step()                 # may load a peer's state into ours
    tree.clear()
    for m in membership.shards(step, tree.num_shards): tree.add(m, gradient of micro-shard m)
    gradient, scalars = group.reduce(tree, scalars)
    if group.commit(): move the weights             # otherwise do the same step again

`SoloGroup` is a single worker and needs no lighthouse; `student_worker.elastic.elastic_group.ElasticGroup` is many.
Between `start_step` and `commit` peers wait for this worker, so whatever may take long (the teacher's answers,
compilation, evaluation) belongs before `start_step`.

Knows nothing of models, optimisers, data or teachers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from student_worker.elastic.reduction import GradientSum, shard_ranges, sum_scalars

Metadata = dict[str, Any]
"""What JSON can hold: the position in the order, schedules, hashes."""


@dataclass(frozen=True)
class Membership:
    """Who takes part in a step: this worker is `rank` of `world_size`; `step` steps are committed already.

    So many of the last ranks are `newcomers`: they take the weights from a peer while the others compute, and have no
    part in what this step, and no other, computes. So nobody waits for what they would have begun too late.
    """

    step: int
    rank: int
    world_size: int
    newcomers: int = 0

    def shards(self, step: int, num_shards: int) -> range:
        """Return the contiguous micro-shards that this worker computes of a step, if nobody comes or goes till then."""
        return self.all_shards(step, num_shards)[self.rank]

    def all_shards(self, step: int, num_shards: int) -> list[range]:
        """Return the micro-shards of every rank."""
        return shard_ranges(self.world_size, self.newcomers if step == self.step else 0, num_shards)


class TrainingState(Protocol):
    """All that a newcomer needs to go on as if it had been there from the beginning."""

    def state(self) -> tuple[dict[str, Tensor], Metadata]:
        """Return weights, optimiser and the rest; the tensors may be the live ones."""

    def load(self, tensors: dict[str, Tensor], metadata: Metadata) -> None:
        """Take over what `state` of a peer returned."""


class Group(ABC):
    """The workers of a run, as one of them sees it. Also a context manager that closes itself."""

    @abstractmethod
    def start_step(self) -> Membership:
        """Agree on who takes part in the next step; loads a peer's state first if this worker is behind."""

    @abstractmethod
    def reduce(self, tree: GradientSum, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over all workers.

        When a peer fails on the way, zeros come back and `commit` answers False.

        Args:
            tree: holds the gradients of this worker's shards.
            scalars: float64 `[M, k]`, non-zero only in the rows of this worker's shards.

        Returns:
            The flat float32 gradient `[n]` (valid until `tree.clear`) and the complete float64 `[M, k]` on the CPU.
        """

    @abstractmethod
    def commit(self) -> bool:
        """Vote, and answer whether the step counts; move the weights only if it does."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group; the others go on without this worker."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SoloGroup(Group):
    """A single worker: every step counts.

    Args:
        state: unused here; so that both groups are made alike.
        step: steps that are committed already, from the checkpoint.
    """

    def __init__(self, state: TrainingState, *, step: int = 0) -> None:
        del state
        self._step = step

    def start_step(self) -> Membership:
        """Return a world of one."""
        return Membership(step=self._step, rank=0, world_size=1)

    def reduce(self, tree: GradientSum, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """Return this worker's own sums."""
        return tree.total(None), sum_scalars(scalars, None, tree.device)

    def commit(self) -> bool:
        """Count the step."""
        self._step += 1
        return True

    def close(self) -> None:
        """There is nobody to leave."""
