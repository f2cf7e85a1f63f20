"""One worker of the benchmark `reduction`: steps a random model with its peers, and rank 0 says how long it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks._measure import interleave
from student_worker.elastic.collectives import ProcessGroupCollectives, process_group
from student_worker.elastic.reduction import GradientSum, gradient_sum, shard_range
from student_worker.optimizer import StudentOptimizer

SHARDS = (4, 8)
KINDS: tuple[Literal["fast", "exact"], ...] = ("fast", "exact")
BATCH_BLOCKS = 8
BLOCK_TOKENS = 64
PATIENCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Size:
    """Of the student."""

    vocabulary: int
    hidden: int
    layers: int


def make_model(size: Size) -> LlamaForCausalLM:
    """Return a random Llama, the same in every worker."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


class Stepper:
    """Takes whole steps by one of the sums."""

    def __init__(self, model: LlamaForCausalLM, collectives: ProcessGroupCollectives | None) -> None:
        self._model = model
        self._collectives = collectives
        self._optimizer = StudentOptimizer(model)
        generator = torch.Generator().manual_seed(1)
        self._blocks = torch.randint(model.config.vocab_size, (BATCH_BLOCKS, BLOCK_TOKENS), generator=generator)
        self.num_elements = self._optimizer.num_parameters

    def contestant(self, kind: Literal["fast", "exact"], shards: int) -> Callable[[], None]:
        """Return a step by the sum `kind` over `shards` micro-shards; its buffers are kept from step to step."""
        return partial(self._step, gradient_sum(kind, shards, self.num_elements))

    def _step(self, tree: GradientSum) -> None:
        self.compute(tree)
        self.update(tree.total(self._collectives))

    def compute(self, tree: GradientSum) -> None:
        """Add the gradients of this worker's micro-shards."""
        rank, world_size = (self._collectives.rank, self._collectives.world_size) if self._collectives else (0, 1)
        flat = torch.zeros(self.num_elements)
        tree.clear()
        for shard in shard_range(rank, world_size, tree.num_shards):
            flat.zero_()
            self._optimizer.attach(flat)
            self._loss(self._blocks.chunk(tree.num_shards)[shard]).backward()  # type: ignore[no-untyped-call]  # torch's
            tree.add(shard, flat)
        self._optimizer.detach()

    def update(self, gradient: Tensor) -> None:
        """Move the weights by a whole gradient."""
        self._optimizer.apply(gradient, 1e-4)

    def _loss(self, ids: Tensor) -> Tensor:
        logits = self._model(ids).logits
        return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / BATCH_BLOCKS


def main() -> None:
    """Run one worker: port, world size, rounds, the size of the student, rank."""
    port, world_size, rounds, vocabulary, hidden, layers, rank = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    collectives = None
    if world_size > 1:
        group = process_group(torch.device("cpu"), PATIENCE)
        group.max_workers = world_size
        group.configure(f"127.0.0.1:{port}/reduction", f"worker-{rank}", rank, world_size)
        collectives = ProcessGroupCollectives(group, rank, world_size, 0)
    stepper = Stepper(make_model(Size(vocabulary, hidden, layers)), collectives)
    contestants = {f"{kind}-{shards}": stepper.contestant(kind, shards) for shards in SHARDS for kind in KINDS}
    timings = interleave(contestants, rounds, warm_up_rounds=1)
    if rank == 0:
        seconds = {name: (timing.minimum, timing.median, timing.maximum) for name, timing in timings.items()}
        print(json.dumps({"elements": stepper.num_elements, "seconds": seconds}))


if __name__ == "__main__":
    main()
