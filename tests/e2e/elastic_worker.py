"""A worker that trains a few numbers, with all that a real one does: elastic steps, exact sums, checkpoints.

    python elastic_worker.py OUTPUT STEPS [--lighthouse HOST:PORT --worker-id NAME --run-id ID --token TOKEN]

It writes a line for every committed step to OUTPUT/steps-WORKER.jsonl and its final weights' hash to
OUTPUT/final-WORKER.json. Exit codes are the product's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.errors import ConfigurationError
from student_worker.checkpoints import CheckpointStore
from student_worker.elastic.elastic_group import ElasticGroup, Group, SoloGroup
from student_worker.elastic.reduction import ShardTree
from student_worker.prefetch import Interrupted

BATCH = 16
CHECKPOINT_EVERY = 5
COMPANY_SECONDS = 100.0


class State:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-2, foreach=False)
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
        return tensors, {"parameters": len(self.parameters)}

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        assert metadata == {"parameters": len(self.parameters)}
        self.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = tensor.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def digest(self) -> str:
        return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in self.parameters)).hexdigest()

    def gradient(self, sample_ids: range) -> tuple[Tensor, float]:
        total = torch.zeros(())
        self.optimizer.zero_grad(set_to_none=False)
        for sample in sample_ids:
            generator = torch.Generator().manual_seed(sample)
            inputs = torch.randn(16, generator=generator)
            total = total + ((self.model(inputs) - torch.sin(3 * inputs)) ** 2).mean() / BATCH
        torch.autograd.backward(total)
        return torch.cat([p.grad.reshape(-1) for p in self.parameters if p.grad is not None]), total.item()

    def move(self, gradient: Tensor) -> None:
        sizes = [p.numel() for p in self.parameters]
        for parameter, part in zip(self.parameters, torch.split(gradient, sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        self.optimizer.step()


def wait_for_company(output: Path, number: int) -> None:
    """Wait until so many workers have been started in all, those that have ended since among them."""
    deadline = time.monotonic() + COMPANY_SECONDS
    while len(list(output.glob("ready-*"))) < number and time.monotonic() < deadline:
        time.sleep(0.01)


def train(state: State, group: Group, output: Path, arguments: argparse.Namespace, stopping: threading.Event) -> None:
    tree = ShardTree(arguments.shards, sum(p.numel() for p in state.parameters))
    log = (output / f"steps-{arguments.worker_id}.jsonl").open("a", buffering=1)
    (output / f"ready-{arguments.worker_id}-{os.getpid()}").touch()
    gates = {0: arguments.company, arguments.gate: arguments.company_at_gate}
    step = 0
    while not stopping.is_set():
        wait_for_company(output, gates.get(step, 0))
        membership = group.start_step()
        step = membership.step + 1
        if membership.step >= arguments.steps:
            return
        tree.clear()
        losses = torch.zeros(arguments.shards, 1, dtype=torch.float64)
        shards = membership.shards(membership.step, arguments.shards)
        for shard in shards:
            first = membership.step * BATCH + shard * BATCH // arguments.shards
            gradient, loss = state.gradient(range(first, first + BATCH // arguments.shards))
            tree.add(shard, gradient)
            losses[shard, 0] = loss
        time.sleep(arguments.pause)  # a step long enough for faults to fall into
        gradient, losses = group.reduce(tree, losses)
        if not group.commit():
            continue
        state.move(gradient)
        step = membership.step + 1
        entry = {"step": step, "world": membership.world_size, "shards": list(shards), "loss": losses.sum().item()} | {
            "at": time.time()
        }
        log.write(json.dumps(entry) + "\n")
        if membership.rank == 0 and step % CHECKPOINT_EVERY == 0:
            CheckpointStore(output, keep_last=3).save(step, *state.state(), background=False)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--lighthouse")
    parser.add_argument("--worker-id", default=os.environ.get("STILLHOUSE_WORKER_ID", "worker-0"))
    parser.add_argument("--run-id", default="run")
    parser.add_argument("--token", default=os.environ.get("STILLHOUSE_RUN_TOKEN", "token"))
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=10.0)
    parser.add_argument("--company", type=int, default=0, help="so many must be started before the first step")
    parser.add_argument("--gate", type=int, default=-1, help="a step, before which ...")
    parser.add_argument("--company-at-gate", type=int, default=0, help="... so many must be started in all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    state = State()
    step = 0
    if (checkpoint := CheckpointStore(arguments.output).load()) is not None:
        state.load(checkpoint.tensors, checkpoint.metadata)
        step = checkpoint.step
    lighthouse = arguments.lighthouse or os.environ.get("STILLHOUSE_LIGHTHOUSE")
    try:
        group = (
            ElasticGroup(
                state,
                lighthouse=lighthouse,
                worker_id=arguments.worker_id,
                token=arguments.token,
                run={"recipe": arguments.run_id},
                max_workers=arguments.shards,
                step=step,
                timeout_seconds=arguments.timeout,
                stopping=stopping,
            )
            if lighthouse
            else SoloGroup(state, step=step)
        )
        with group:
            train(state, group, arguments.output, arguments, stopping)
    except Interrupted:
        return 143
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if stopping.is_set():
        return 143
    (arguments.output / f"final-{arguments.worker_id}.json").write_text(json.dumps({"weights": state.digest()}))
    return 0


if __name__ == "__main__":
    # Not sys.exit: taking the interpreter apart takes torch two seconds, and nothing here is left to close.
    code = main()
    sys.stderr.flush()
    os._exit(code)
