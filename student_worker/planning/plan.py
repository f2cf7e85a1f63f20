"""What a run would take, before any weight is loaded: sizes, work, bytes, memory and disk, and whether all that fits.

Counts are of one worker unless a name says otherwise; sizes are in bytes. Knows nothing of how a plan is shown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stillhouse.disk import folder_bytes, free_disk, shown
from stillhouse.encoding_text import format_encoding
from stillhouse.errors import ConfigurationError
from student_worker.elastic.sum_costs import BYTES, sum_memory_bytes, sum_traffic_bytes
from student_worker.evaluation.evaluate import row_bytes
from student_worker.fetching_ahead import prefetch_steps
from student_worker.planning.checked import Checked
from student_worker.planning.model_size import ModelSize
from student_worker.planning.resources import free_memory
from student_worker.recipe.run_length import num_tokens
from student_worker.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Memory:
    """What a worker holds all the time; activations and a batch's logits come on top and are not counted."""

    weights: int
    gradient: int
    optimizer: int
    sum_exact: int
    sum_fast: int
    head: int
    prefetched: int
    held_out: int
    free: int

    def needed(self, reduction: str) -> int:
        """Return the sum under `reduction: exact` or `fast`."""
        others = self.weights + self.gradient + self.optimizer + self.head
        return others + (self.sum_exact if reduction == "exact" else self.sum_fast)


@dataclass(frozen=True, slots=True)
class Disk:
    """What stands on the disk at most: so many checkpoints (one of them being written), and the exports.

    `free` is None, and nothing is checked, where checkpoints go to an address.
    """

    checkpoint: int
    checkpoints: int
    exports: int
    written: int
    free: int | None

    @property
    def needed(self) -> int:
        """All of it, beside what is there already."""
        return max(0, self.checkpoint * self.checkpoints + self.exports - self.written)

    @property
    def least(self) -> int:
        """One checkpoint and the export: with less a run comes to nothing."""
        return max(0, self.checkpoint + self.exports - self.written)


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it.

    `rows` are positions that are asked about and learnt from; those per run are an estimate where the data is passed
    over in part. A size of None: the teacher's name leads to no model from here. `store` is where answers are read.
    """

    recipe_hash: str
    data_fingerprint: str
    teacher: str
    teacher_size: ModelSize | None
    student_size: ModelSize
    vocabulary_size: int
    samples: int
    held_out_samples: int
    steps: int
    epochs: float
    tokens: int
    encoding: str
    bytes_per_position: int
    rows_per_run: int
    bytes_per_run: int
    workers: int
    workers_per_device: int
    micro_shards: int
    reduction: str
    device: str
    memory: Memory
    traffic_exact: int
    traffic_fast: int
    disk: Disk
    store: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return everything, with what is needed in all."""
        content = asdict(self)
        content["memory"]["needed"] = self.memory.needed(self.reduction)
        content["disk"]["needed"] = self.disk.needed
        return content


def make_plan(recipe: Recipe, checked: Checked, device: torch.device, *, workers: int = 1) -> Plan:
    """Return the plan of a run that has been checked."""
    train, held_out = checked.corpus.train, checked.corpus.held_out
    size = checked.sketch.size
    n = size.trained_parameters
    samples = checked.num_steps * recipe.global_batch_size
    per_position = row_bytes(checked.asking.encoding, checked.vocabulary_size, checked.teacher.hidden_size)
    # With cross-entropy alone nothing is asked.
    rows = round(samples / len(train) * train.part.num_learnt) if recipe.alpha < 1 else 0
    return Plan(
        recipe_hash=recipe.hash,
        data_fingerprint=train.fingerprint,
        teacher=checked.teacher.model,
        store=checked.store,
        teacher_size=checked.teacher_size,
        student_size=size,
        vocabulary_size=checked.vocabulary_size,
        samples=len(train),
        held_out_samples=len(held_out) if held_out else 0,
        steps=checked.num_steps,
        epochs=samples / len(train),
        tokens=num_tokens(checked.num_steps, recipe, train, checked.order),
        encoding=format_encoding(checked.asking.encoding),
        bytes_per_position=per_position,
        rows_per_run=rows,
        bytes_per_run=rows * per_position,
        workers=workers,
        workers_per_device=workers_per_device(recipe, device, workers),
        micro_shards=recipe.micro_shards,
        reduction=recipe.reduction,
        device=str(device),
        memory=_memory(recipe, checked, device, n, workers),
        traffic_exact=sum_traffic_bytes("exact", recipe.micro_shards, n, workers),
        traffic_fast=sum_traffic_bytes("fast", recipe.micro_shards, n, workers),
        disk=_disk(recipe, checked, n),
    )


def check_fits(plan: Plan, *, whole_disk: bool) -> None:
    """Refuse what this machine cannot hold.

    Args:
        plan: of the run.
        whole_disk: refuse too where there is room to begin, but not for all that is kept.

    Raises:
        ConfigurationError: memory or disk do not suffice; the message says what would.
    """
    memory = plan.memory
    needed, free = memory.needed(plan.reduction), memory.free // plan.workers_per_device
    if needed > free:
        fits_fast = plan.reduction == "exact" and memory.needed("fast") <= free
        remedy = (
            f"reduction: fast needs {shown(memory.needed('fast'))} and fits (its bits depend on the number of workers)"
            if fits_fast
            else "take a smaller student, adapters (student.lora_r), fewer workers here, or another device"
        )
        raise ConfigurationError(
            f"reduction: {plan.reduction} does not fit: weights, gradient, AdamW and the sum over {plan.micro_shards} "
            f"micro_shards take {shown(needed)} on {plan.device}, of which {shown(free)} are free for each of "
            f"{plan.workers_per_device} worker(s) there; {remedy}"
        )
    disk = plan.disk
    if disk.free is None:
        return
    wanted = disk.needed if whole_disk else disk.least
    if wanted > disk.free:
        raise ConfigurationError(
            f"output_dir: {disk.checkpoints} checkpoints of {shown(disk.checkpoint)} and exports of "
            f"{shown(disk.exports)} need {shown(wanted)} more on the disk, and {shown(disk.free)} are free; free some, "
            "lower save_total_limit, or name another output_dir or checkpoint_dir"
        )


def workers_per_device(recipe: Recipe, device: torch.device, workers: int) -> int:
    """Return how many workers of this host share a device: GPUs are shared out evenly unless one is named."""
    if device.type == "cuda" and recipe.device in ("auto", "cuda"):
        return -(-workers // torch.cuda.device_count())
    return workers


def _memory(recipe: Recipe, checked: Checked, device: torch.device, n: int, workers: int) -> Memory:
    parts, held_out = recipe.micro_shards, checked.corpus.held_out
    # Whoever has a lighthouse may be joined by others, up to one for each micro-shard.
    most = parts if recipe.lighthouse is not None or workers > 1 else 1
    head = checked.vocabulary_size * checked.teacher.hidden_size * BYTES if checked.fetches_head else 0
    row = row_bytes(checked.eval_asking.encoding, checked.vocabulary_size, checked.teacher.hidden_size)
    answers = held_out.part.num_learnt * row if held_out and recipe.eval_steps != 0 else 0
    return Memory(
        weights=BYTES * checked.sketch.size.parameters,
        gradient=BYTES * n,
        optimizer=2 * BYTES * n,
        sum_exact=sum_memory_bytes("exact", parts, n, most),
        sum_fast=sum_memory_bytes("fast", parts, n, most),
        head=head,
        prefetched=recipe.prefetch_bytes if prefetch_steps(recipe, checked.teacher, device) else 0,
        held_out=answers if answers <= recipe.eval_memory_bytes else 0,
        free=free_memory(device),
    )


def _disk(recipe: Recipe, checked: Checked, n: int) -> Disk:
    if recipe.smoke_steps is not None:
        return Disk(0, 0, 0, 0, free_disk(recipe.output_dir))
    written = -(-checked.num_steps // recipe.save_steps)
    kept = written if recipe.save_total_limit is None else min(written, recipe.save_total_limit)
    best = int(checked.corpus.held_out is not None and recipe.eval_steps != 0)
    exports = checked.sketch.export_bytes * (1 + recipe.export_initial)
    checkpoint = 3 * BYTES * n
    address = recipe.checkpoint_dir
    is_elsewhere = address is not None and "://" in address
    folder = recipe.output_dir if address is None or is_elsewhere else Path(address)
    there = sum(folder_bytes(path) for path in folder.glob("checkpoint-*"))
    return Disk(checkpoint, kept + best + 1, exports, there, None if is_elsewhere else free_disk(folder))
