"""One worker of the benchmark `recovery`: elastic steps of a known length, each commit with its moment.

    python -m benchmarks._recovery_worker LIGHTHOUSE NAME LOG ELEMENTS STEP_SECONDS TIMEOUT_SECONDS

What a step computes is slept through, so that many workers can share few cores without slowing each other; quorum,
healing, sum and vote are the real ones.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from student_worker.elastic.elastic_group import ElasticGroup
from student_worker.elastic.reduction import ShardTree
from student_worker.prefetch import Interrupted

SHARDS = 4
TOKEN = "recovery"  # noqa: S105 - of a run on one machine, for a minute


class State:
    """Weights and two moments, as AdamW has them."""

    def __init__(self, num_elements: int) -> None:
        self.tensors = {name: torch.zeros(num_elements) for name in ("weights", "exp_avg", "exp_avg_sq")}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the live tensors."""
        return self.tensors, {}

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Take over a peer's."""
        del metadata
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


def main() -> None:
    """Step until SIGTERM."""
    lighthouse, name, log_path, elements, step_seconds, timeout_seconds = sys.argv[1:]
    torch.set_num_threads(1)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    state = State(int(elements))
    gradient = torch.full((int(elements),), 1e-6)
    tree = ShardTree(SHARDS, int(elements))
    group = ElasticGroup(
        state,
        lighthouse=lighthouse,
        worker_id=name,
        token=TOKEN,
        run={},
        max_workers=SHARDS,
        timeout_seconds=float(timeout_seconds),
        stopping=stopping,
    )
    with Path(log_path).open("a", buffering=1, encoding="utf-8") as log:
        while not stopping.is_set():
            try:
                membership = group.start_step()
            except Interrupted:
                break
            tree.clear()
            for shard in membership.shards(membership.step, SHARDS):
                time.sleep(float(step_seconds) / SHARDS)
                tree.add(shard, gradient)
            total, _ = group.reduce(tree, torch.zeros(SHARDS, 1, dtype=torch.float64))
            if group.commit():
                state.tensors["weights"].add_(total)
                entry = {"step": membership.step + 1, "world": membership.world_size, "at": time.monotonic()}
                log.write(json.dumps(entry) + "\n")
    group.close()


if __name__ == "__main__":
    main()
    # Not sys.exit: taking the interpreter apart takes torch two seconds, and nothing here is left to close.
    os._exit(0)
