"""The collectives of a torchft process group: gloo on the CPU, NCCL on CUDA.

torchft's Manager watches over its own all-reduce only, so every failure here comes out as `ExchangeError`, for the
group to report. Also where two runs that met at one lighthouse are told apart, before they exchange anything.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions
from torch.distributed.distributed_c10d import AllreduceOptions, AllToAllOptions, ReduceOp
from torchft.process_group import ProcessGroup, ProcessGroupGloo, ProcessGroupNCCL, create_store_client

from stillhouse.errors import ConfigurationError, StillhouseError


class ExchangeError(StillhouseError):
    """A peer left, froze or failed during a collective; the step does not count."""


class RunMismatchError(ConfigurationError):
    """A worker of another recipe, data or release came to this run's lighthouse."""


class ProcessGroupCollectives:
    """The `Collectives` of one membership; returns when the result is there (on CUDA: in stream order)."""

    def __init__(self, group: ProcessGroup, rank: int, world_size: int) -> None:
        self._group = group
        self.rank = rank
        self.world_size = world_size

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace `tensor` by the sum over ranks."""
        options = AllreduceOptions()
        options.reduceOp = ReduceOp(ReduceOp.SUM)
        self._wait("allreduce", [tensor], options)

    def all_to_all(self, output: Tensor, source: Tensor, output_sizes: list[int], source_sizes: list[int]) -> None:
        """Send `source_sizes[j]` elements of flat `source` to rank j; receive `output_sizes[j]` from it."""
        self._wait("alltoall_base", output, source, output_sizes, source_sizes, AllToAllOptions())

    def all_gather(self, output: Tensor, source: Tensor) -> None:
        """Place the equally long `source` of every rank into `output`."""
        self._wait("allgather_into_tensor_coalesced", [output], [source], AllgatherOptions())

    def _wait(self, collective: str, *arguments: Any) -> None:
        try:
            getattr(self._group, collective)(*arguments).wait()
        except Exception as error:
            raise ExchangeError(f"{collective} over {self.world_size} workers failed: {error}") from error


class _OneRun:
    """Makes a process group of one run only: workers whose `run_id` differs are named before weights can move.

    Who is wrong? Whoever disagrees with the worker that has the most committed steps (the lowest rank among equals):
    a stranger that comes to a run that is under way must not end it.
    """

    run_id: str = ""
    step: int = 0

    def configure(self, store_addr: str, replica_id: str, rank: int, world_size: int, *rest: Any) -> None:
        super().configure(store_addr, replica_id, rank, world_size, *rest)  # type: ignore[misc]  # a mixin's base
        store = create_store_client(store_addr, timeout=self._timeout)  # type: ignore[attr-defined]  # the same
        store.set(f"run/{rank}", f"{self.step}:{self.run_id}")
        told = [store.get(f"run/{other}").decode().split(":", 1) for other in range(world_size)]
        _, _, expected = max((int(step), -other, run_id) for other, (step, run_id) in enumerate(told))
        if expected != self.run_id:
            raise RunMismatchError(
                f"the lighthouse serves run {expected}, this worker's is {self.run_id}: recipe, data or release "
                "differ. Start it with the run's own recipe, or give it another lighthouse"
            )


class GlooGroup(_OneRun, ProcessGroupGloo):  # type: ignore[misc]  # torchft ships no types
    """gloo between the workers of one run."""


class NcclGroup(_OneRun, ProcessGroupNCCL):  # type: ignore[misc]  # torchft ships no types
    """NCCL between the workers of one run."""


def process_group(device: torch.device, run_id: str, timeout: timedelta) -> GlooGroup | NcclGroup:
    """Return the process group that suits a device; it connects when the first quorum is known."""
    if device.type == "cuda":
        # Said beforehand, or torchft warns that it sets the variable itself.
        os.environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", str(timeout.total_seconds()))
    group = NcclGroup(timeout=timeout) if device.type == "cuda" else GlooGroup(timeout=timeout)
    group.run_id = run_id
    return group
