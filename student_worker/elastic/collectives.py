"""The collectives of a torchft process group: gloo on the CPU, NCCL on CUDA.

torchft's Manager watches over its own all-reduce only, so every failure here comes out as `ExchangeError`, for the
group to report. Also where workers introduce themselves, before they exchange anything.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import AllreduceOptions, AllToAllOptions, ReduceOp
from torchft.process_group import ProcessGroup, ProcessGroupGloo, ProcessGroupNCCL, create_store_client

from stillhouse.errors import StillhouseError
from student_worker.elastic.introductions import Introduction, admit
from student_worker.failpoints import fail_point


class ExchangeError(StillhouseError):
    """A peer left, froze or failed during a collective; the step does not count."""


class ProcessGroupCollectives:
    """The `Collectives` of one membership; returns when the result is there (on CUDA: in stream order)."""

    def __init__(self, group: ProcessGroup, rank: int, world_size: int, newcomers: int = 0, step: int = 0) -> None:
        self._group = group
        self._step = step
        self.rank = rank
        self.world_size = world_size
        self.newcomers = newcomers

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace `tensor` by the sum over ranks."""
        options = AllreduceOptions()
        options.reduceOp = ReduceOp(ReduceOp.SUM)
        self._wait("allreduce", [tensor], options)

    def all_to_all(self, output: Tensor, source: Tensor, output_sizes: list[int], source_sizes: list[int]) -> None:
        """Send `source_sizes[j]` elements of flat `source` to rank j; receive `output_sizes[j]` from it."""
        self._wait("alltoall_base", output, source, output_sizes, source_sizes, AllToAllOptions())

    def _wait(self, collective: str, *arguments: Any) -> None:
        try:
            work = getattr(self._group, collective)(*arguments)
            fail_point("mid-reduce", self._step)
            work.wait()
        except Exception as error:
            raise ExchangeError(f"{collective} over {self.world_size} workers failed: {error}") from error


INTRODUCTION_SECONDS = 10.0
"""How long workers that got the same quorum wait for each other's introduction: one that died just then is not waited
for as one that computes is."""


class _OneRun:
    """A process group of those alone who belong to one run: strangers are left out before anything is exchanged.

    `rank` and `world_size` are those among the members, which may be fewer than the quorum; `newcomers` are the last
    of them. A quorum of the same members as before is not configured anew, and has none.
    """

    introduction = Introduction(run={}, token="")
    max_workers = 1
    rank = 0
    world_size = 1
    newcomers = 0

    def configure(
        self, store_addr: str, replica_id: str, rank: int, world_size: int, quorum_id: int | None = None, *_: Any
    ) -> None:
        timeout = min(self._timeout, timedelta(seconds=INTRODUCTION_SECONDS))  # type: ignore[attr-defined]  # a mixin
        store = create_store_client(store_addr, timeout=timeout)
        store.set(f"introduction/{rank}", self.introduction.text())
        texts = [store.get(f"introduction/{other}").decode() for other in range(world_size)]
        members, self.newcomers = admit(rank, texts, self.max_workers)
        self.rank, self.world_size = members.index(rank), len(members)
        prefix = f"{store_addr}/members"
        super().configure(prefix, replica_id, self.rank, self.world_size, quorum_id)  # type: ignore[misc]  # a mixin


class GlooGroup(_OneRun, ProcessGroupGloo):  # type: ignore[misc]  # torchft ships no types
    """gloo between the workers of one run."""


class NcclGroup(_OneRun, ProcessGroupNCCL):  # type: ignore[misc]  # torchft ships no types
    """NCCL between the workers of one run."""


def process_group(device: torch.device, timeout: timedelta) -> GlooGroup | NcclGroup:
    """Return the process group that suits a device; it connects when the first quorum is known."""
    if device.type == "cuda":
        # Said beforehand, or torchft warns that it sets the variable itself.
        os.environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", str(timeout.total_seconds()))
        return NcclGroup(timeout=timeout)
    return GlooGroup(timeout=timeout)
