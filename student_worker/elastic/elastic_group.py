"""Elastic groups: workers join, leave and die while the run goes on, on torchft.

Every worker is a replica group of its own; the lighthouse forms a quorum for each step, and a worker that is behind
heals from one that is not. The exact sum makes a step's result independent of who took part, so a worker whose
vote was lost may heal from one whose vote was not: their weights are the same bits.

torchft is imported when a group is made, not when this module is.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from stillhouse.errors import ConfigurationError
from student_worker.elastic.group import Group, Membership, Metadata, SoloGroup, TrainingState
from student_worker.elastic.introductions import Introduction
from student_worker.elastic.network import local_address, split_address, use_interface_of
from student_worker.elastic.quorum import GroupLostError, Quorums, ToldApart
from student_worker.elastic.reduction import GradientSum, sum_scalars

if TYPE_CHECKING:
    from student_worker.elastic.collectives import ProcessGroupCollectives

__all__ = ["ElasticGroup", "Group", "GroupLostError", "Membership", "Metadata", "SoloGroup", "TrainingState"]

CONNECT_TIMEOUT = timedelta(seconds=10)
MAX_TIMEOUT_FACTOR = 8
"""Steps that fail twice double the timeout, up to this many times the one asked for."""
CALM_STEPS = 100
"""After so many steps in a row that counted, a doubled timeout is halved again, down to the one asked for."""
MAX_FAILURES = 30
"""A worker gives up after this many steps in a row that did not count, and may be started anew."""

_log = logging.getLogger(__name__)


class ElasticGroup(Group):
    """Many workers, any of which may come and go.

    All workers start from the same weights: made from the same seed, or loaded from the same checkpoint.

    Args:
        state: given to newcomers, and taken over from a peer when this worker is behind.
        lighthouse: its address, `HOST:PORT`.
        worker_id: a name of this worker, the same after a restart.
        token: the run's secret; a peer without it gets no weights.
        run: recipe, data, release and what else must be equal among the workers, by names that a reader knows;
            workers of different runs part at once.
        max_workers: the most that a global batch has work for; the newest above it leave.
        step: steps that are committed already, from the checkpoint.
        device: where gradients live. Workers on CPUs exchange by gloo, those on GPUs by NCCL, or by gloo through the
            host's memory where two of them share a GPU.
        timeout_seconds: how long peers wait for each other between `start_step` and `commit`; at least five times
            what the slowest worker computes in between.
        quorum_timeout_seconds: how long one attempt at a quorum may take; then follows the next.
        quorum_retries: how often a lighthouse that is away is asked again in one attempt.
        stopping: once it is set, the step under way is this worker's last.
        on_commit: called with the number of committed steps after each.

    Raises:
        ConfigurationError: If the lighthouse's address cannot be used.
        GroupLostError: If nobody answered there for a long time; it may come.
    """

    def __init__(
        self,
        state: TrainingState,
        *,
        lighthouse: str,
        worker_id: str,
        token: str,
        run: Mapping[str, str],
        max_workers: int,
        step: int = 0,
        device: torch.device | str = "cpu",
        timeout_seconds: float = 10.0,
        quorum_timeout_seconds: float = 30.0,
        quorum_retries: int = 50,
        stopping: threading.Event | None = None,
        on_commit: Callable[[int], None] | None = None,
    ) -> None:
        # Both of torchft's halves write several lines for every step; failures are logged here, once.
        os.environ.setdefault("RUST_LOG", "warn")
        for name in ("torchft", "torchft_quorums", "torchft_commits", "torchft_errors"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        from torchft import Manager

        from student_worker.elastic.collectives import process_group
        from student_worker.elastic.transport import StateTransport

        host, port = split_address(lighthouse)
        address = local_address(host, port)
        use_interface_of(address)
        self._timeout = timedelta(seconds=timeout_seconds)
        self._max_timeout = self._timeout * MAX_TIMEOUT_FACTOR
        self._asked_timeout = self._timeout
        self._failures = 0
        self._calm = 0
        self._run = (run, token)
        self._established = False
        self._on_commit = on_commit
        self._stopping = stopping or threading.Event()
        self._has_left = False
        self._collectives: ProcessGroupCollectives | None = None
        self._device = torch.device(device)
        self._device_name = _name_of(self._device)
        self._processes = process_group(self._device, self._timeout)
        self._processes.max_workers = max_workers
        self._transport = StateTransport(address, token, transfer_timeout_seconds=self._max_timeout.total_seconds())
        # Kept: the store lives as long as this object, and with it the worker's place in the quorum.
        self._store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        make_manager = partial(
            Manager,
            pg=self._processes,
            load_state_dict=lambda pair: state.load(*pair),
            state_dict=state.state,
            min_replica_size=1,
            use_async_quorum=False,
            init_sync=False,
            timeout=self._timeout,
            quorum_timeout=timedelta(seconds=quorum_timeout_seconds),
            connect_timeout=CONNECT_TIMEOUT,
            rank=0,
            world_size=1,
            store_addr=address,
            store_port=self._store.port,
            lighthouse_addr=f"http://{host}:{port}",
            replica_id=worker_id,
            hostname=address,
            checkpoint_transport=self._transport,
            quorum_retries=quorum_retries,
        )
        self._quorums = Quorums(make_manager, f"{host}:{port}", self._device, self._stopping)
        self._manager = self._quorums.manager
        self._manager._client = ToldApart(self._manager._client)  # noqa: SLF001 - there is no public way
        self._manager.load_state_dict({"step": step, "batches_committed": 0})
        # It may be a newcomer at its first quorum, where others wait for it.
        self._transport.make_room(state.state()[0])

    def start_step(self) -> Membership:
        """Form the next quorum, heal if this worker is behind, and return who takes part.

        Raises:
            ConfigurationError: If this worker is a stranger to the run (another recipe, another token), or one more
                than it has work for.
            GroupLostError: If no quorum could be formed, or healing failed again and again.
            Interrupted: If `stopping` was set meanwhile and no quorum came.
        """
        from student_worker.elastic.collectives import ProcessGroupCollectives

        while True:
            step = self._manager.current_step()
            run, token = self._run
            self._processes.introduction = Introduction(run, token, step, self._established, self._device_name)
            self._processes.newcomers = 0
            self._quorums.form(step)
            failure = self._manager.errored()
            if failure is None:
                break
            if isinstance(failure.original_exception, ConfigurationError):
                raise failure.original_exception
            _log.warning("step %d could not begin: %s", step, failure.original_exception)
            # Peers wait for this worker: let them fail at once rather than after their timeout.
            self._processes.abort()
            self.commit()
        self._transport.give_up_room()
        membership = Membership(
            step=self._manager.current_step(),
            rank=self._processes.rank,
            world_size=self._processes.world_size,
            newcomers=self._processes.newcomers,
        )
        self._collectives = ProcessGroupCollectives(
            self._processes,
            membership.rank,
            membership.world_size,
            membership.newcomers,
            membership.step,
            through_host=self._processes.through_host,
        )
        return membership

    def reduce(self, tree: GradientSum, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over all workers; zeros come back when a peer failed, and then `commit` answers False."""
        from student_worker.elastic.collectives import ExchangeError

        if self._stopping.is_set() and not self._transport.is_offering:
            # This worker's last step. The lighthouse knows no farewell, only silence: the sooner it begins, the less
            # the others wait for their next quorum. Sum and vote need neither the lighthouse nor a heartbeat.
            self._leave()
        try:
            return tree.total(self._collectives), sum_scalars(scalars, self._collectives, tree.device)
        except ExchangeError as error:
            _log.warning("step %d will be done again: %s", self._manager.current_step(), error)
            self._manager.report_error(error)
            self._processes.abort()
            return torch.zeros(tree.num_elements, device=tree.device), torch.zeros_like(scalars)

    def commit(self) -> bool:
        """Vote, and answer whether the step counts.

        Raises:
            GroupLostError: After `MAX_FAILURES` steps in a row that did not count.
        """
        if self._has_left:
            return self._manager.errored() is None and self._processes.errored() is None
        if self._manager.should_commit(timeout=self._timeout):
            self._failures = 0
            self._calm += 1
            self._established = True
            if self._on_commit is not None:
                self._on_commit(self._manager.current_step())
            if self._calm % CALM_STEPS == 0 and self._timeout > self._asked_timeout:
                self._wait_up_to(max(self._timeout / 2, self._asked_timeout))
            return True
        self._failures += 1
        self._calm = 0
        if self._failures >= MAX_FAILURES:
            raise GroupLostError(f"step {self._manager.current_step()} failed {self._failures} times in a row")
        if self._failures % 2 == 0 and self._timeout < self._max_timeout:
            self._wait_up_to(min(2 * self._timeout, self._max_timeout))
            _log.warning("two failures at one step: peers now wait up to %s for each other", self._timeout)
        return False

    def _wait_up_to(self, timeout: timedelta) -> None:
        self._timeout = timeout
        self._processes.set_timeout(timeout)

    def close(self) -> None:
        """Leave the group; the others notice it by the missing heartbeat."""
        self._leave()
        self._processes.abort()

    def _leave(self) -> None:
        if not self._has_left:
            self._has_left = True
            self._manager.shutdown(wait=False)


def _name_of(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
