"""The collectives of a torchft process group: gloo on the CPU, NCCL on CUDA where every worker has a GPU of its own.

NCCL refuses two ranks on one GPU; workers that share one exchange by gloo, through the host's memory. torchft's
Manager watches over its own all-reduce only, so every failure here comes out as `ExchangeError`, for the group to
report. Also where workers introduce themselves, before they exchange anything.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import AllreduceOptions, AllToAllOptions, ReduceOp
from torchft.process_group import (
    ProcessGroup,
    ProcessGroupGloo,
    ProcessGroupNCCL,
    ProcessGroupWrapper,
    create_store_client,
)

from stillhouse.errors import StillhouseError
from student_worker.elastic.introductions import Introduction, admit, share_a_device
from student_worker.failpoints import fail_point


class ExchangeError(StillhouseError):
    """A peer left, froze or failed during a collective; the step does not count."""


class ProcessGroupCollectives:
    """The `Collectives` of one membership; returns when the result is there (on CUDA: in stream order).

    With `through_host` the group knows tensors in the host's memory alone; those of a GPU are copied there and back.
    """

    def __init__(
        self,
        group: ProcessGroup,
        rank: int,
        world_size: int,
        newcomers: int = 0,
        step: int = 0,
        *,
        through_host: bool = False,
    ) -> None:
        self._group = group
        self._step = step
        self._through_host = through_host
        self.rank = rank
        self.world_size = world_size
        self.newcomers = newcomers

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace `tensor` by the sum over ranks."""
        options = AllreduceOptions()
        options.reduceOp = ReduceOp(ReduceOp.SUM)
        here = tensor.cpu() if self._through_host else tensor
        self._wait("allreduce", [here], options)
        if here is not tensor:
            tensor.copy_(here)

    def all_to_all(self, output: Tensor, source: Tensor, output_sizes: list[int], source_sizes: list[int]) -> None:
        """Send `source_sizes[j]` elements of flat `source` to rank j; receive `output_sizes[j]` from it."""
        here = torch.empty_like(output, device="cpu") if self._through_host else output
        sent = source.cpu() if self._through_host else source
        self._wait("alltoall_base", here, sent, output_sizes, source_sizes, AllToAllOptions())
        if here is not output:
            output.copy_(here)

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
    through_host = False
    """Whether members exchange through the host's memory what lies on a GPU."""

    def configure(
        self, store_addr: str, replica_id: str, rank: int, world_size: int, quorum_id: int | None = None, *_: Any
    ) -> None:
        timeout = min(self._timeout, timedelta(seconds=INTRODUCTION_SECONDS))  # type: ignore[attr-defined]  # a mixin
        store = create_store_client(store_addr, timeout=timeout)
        store.set(f"introduction/{rank}", self.introduction.text())
        texts = [store.get(f"introduction/{other}").decode() for other in range(world_size)]
        members, self.newcomers = admit(rank, texts, self.max_workers)
        self.rank, self.world_size = members.index(rank), len(members)
        self._meet([texts[member] for member in members])
        prefix = f"{store_addr}/members"
        super().configure(prefix, replica_id, self.rank, self.world_size, quorum_id)  # type: ignore[misc]  # a mixin

    def _meet(self, introductions: list[str]) -> None:
        """Look at those who stay, before they are connected."""


class GlooGroup(_OneRun, ProcessGroupGloo):  # type: ignore[misc]  # torchft ships no types
    """gloo between the workers of one run."""


class CudaGroup(_OneRun, ProcessGroupWrapper):  # type: ignore[misc]  # torchft ships no types
    """NCCL between the workers of one run, gloo where two of them have one GPU; chosen anew with every membership."""

    def _meet(self, introductions: list[str]) -> None:
        self.through_host = share_a_device(introductions)
        chosen = ProcessGroupGloo if self.through_host else ProcessGroupNCCL
        before: Any = self._pg
        if not isinstance(before, chosen):
            if before is not None:
                before.abort()
            self._pg: Any = chosen(timeout=self._timeout)

    def errored(self) -> Exception | None:
        """Return what went wrong since the members were connected, if anything did."""
        group: Any = self._pg
        failure: Exception | None = None if group is None else group.errored()
        return failure

    def set_timeout(self, timeout: timedelta) -> None:
        """Wait so long for a collective from now on."""
        super().set_timeout(timeout)
        group: Any = self._pg
        if group is not None:
            group.set_timeout(timeout)


def process_group(device: torch.device, timeout: timedelta) -> GlooGroup | CudaGroup:
    """Return the process group that suits a device; it connects when the first quorum is known."""
    if device.type == "cuda":
        # Said beforehand, or torchft warns that it sets the variable itself.
        os.environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", str(timeout.total_seconds()))
        return CudaGroup(timeout=timeout)
    return GlooGroup(timeout=timeout)
