"""The collectives of a torchft process group: gloo on the CPU, NCCL on CUDA.

torchft's Manager watches over its own all-reduce only, so every failure here comes out as `ExchangeError`, for the
group to report. Also where two runs that met at one lighthouse are told apart, before they exchange anything.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions
from torch.distributed.distributed_c10d import AllreduceOptions, AllToAllOptions, ReduceOp
from torchft.process_group import ProcessGroup, ProcessGroupGloo, ProcessGroupNCCL, create_store_client

from stillhouse.errors import ConfigurationError, StillhouseError
from student_worker.failpoints import fail_point


class ExchangeError(StillhouseError):
    """A peer left, froze or failed during a collective; the step does not count."""


class RunMismatchError(ConfigurationError):
    """A worker of another recipe, data or release came to this run's lighthouse."""


class ProcessGroupCollectives:
    """The `Collectives` of one membership; returns when the result is there (on CUDA: in stream order)."""

    def __init__(self, group: ProcessGroup, rank: int, world_size: int, step: int = 0) -> None:
        self._group = group
        self._step = step
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
            work = getattr(self._group, collective)(*arguments)
            fail_point("mid-reduce", self._step)
            work.wait()
        except Exception as error:
            raise ExchangeError(f"{collective} over {self.world_size} workers failed: {error}") from error


@dataclass(frozen=True)
class Introduction:
    """What a worker tells its peers before weights can move.

    Attributes:
        run_id: stands for recipe, data and release; workers train together only if theirs are equal.
        token: the run's secret; only a keyed hash of it is shown.
        step: the committed steps of this worker.
        established: whether it has committed a step in this run already.
    """

    run_id: str
    token: str
    step: int = 0
    established: bool = False

    def text(self) -> str:
        """Return what goes to the peers."""
        key = hashlib.sha256(self.token.encode()).digest()
        proof = hashlib.blake2b(self.run_id.encode(), key=key, digest_size=16).hexdigest()
        return json.dumps({"standing": [self.established, self.step], "run_id": self.run_id, "proof": proof})


def check_peers(mine: str, all_ranks: list[str]) -> None:
    """Refuse this worker if it is a stranger: it disagrees with the run that is under way.

    That run is the one of the worker with the best standing (established, most steps, lowest rank), so that a
    stranger that comes to a live run must leave, and not the run.

    Raises:
        RunMismatchError: If this worker is the stranger.
    """
    own = json.loads(mine)
    # The first of the greatest, as `max` promises: the lowest rank among equals.
    leader = max((json.loads(text) for text in all_ranks), key=lambda peer: peer["standing"])
    if leader["run_id"] != own["run_id"]:
        raise RunMismatchError(
            f"the lighthouse serves run {leader['run_id']}, and this worker's is {own['run_id']}: recipe, data or "
            "release differ. Start it as the others were started, or give it another lighthouse"
        )
    if leader["proof"] != own["proof"]:
        raise RunMismatchError("this worker's token is not the run's. Start it with the token of the others")


class _OneRun:
    """Makes a process group of one run only: strangers are told apart before anything is exchanged."""

    introduction = Introduction(run_id="", token="")

    def configure(self, store_addr: str, replica_id: str, rank: int, world_size: int, *rest: Any) -> None:
        super().configure(store_addr, replica_id, rank, world_size, *rest)  # type: ignore[misc]  # a mixin's base
        store = create_store_client(store_addr, timeout=self._timeout)  # type: ignore[attr-defined]  # the same
        mine = self.introduction.text()
        store.set(f"introduction/{rank}", mine)
        check_peers(mine, [store.get(f"introduction/{other}").decode() for other in range(world_size)])


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
