"""Workers of one world, each a process of one thread on this host, that tell by their last line what they measured."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from torch._C._distributed_c10d import TCPStore

from stillhouse.processes import Child
from student_worker.elastic.network import use_interface_of

ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
"""Of a worker: one thread, and the benchmarks to be found."""

WORKER_SECONDS = 1200.0
"""Far more than the slowest world takes; a worker that hangs must not hang the benchmark."""


def run_workers(program: str, world_size: int, *arguments: int) -> Any:
    """Run a module once for each worker; return the JSON that rank 0 printed last.

    Its arguments are the port of the store at which they meet, the world size, `arguments`, and the rank.

    Raises:
        RuntimeError: a worker failed; its last lines are in the message.
    """
    use_interface_of("127.0.0.1")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    argv = [sys.executable, "-m", program, *map(str, (store.port, world_size, *arguments))]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            stack.enter_context(Child(f"worker {rank}", [*argv, str(rank)], folder / f"{rank}.log", ENVIRONMENT))
            for rank in range(world_size)
        ]
        deadline = time.monotonic() + WORKER_SECONDS
        for worker in workers:
            if worker.wait(deadline - time.monotonic()) != 0:
                raise RuntimeError(f"{worker.name} ended with {worker.poll()}:\n{worker.tail()}")
        return json.loads(workers[0].tail(1))
