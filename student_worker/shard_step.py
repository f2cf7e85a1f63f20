"""One micro-shard's loss and gradient, head and loss by chunks of rows.

The body of the model runs once; the head, the loss and their gradients run over chunks of rows, so that memory is
bounded by the chunk and not by the vocabulary times the batch. Knows nothing of workers or optimizers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from stillhouse.kd import kd_loss_and_gradient
from stillhouse.kd.teacher import TopKTail
from stillhouse.payloads import OutputHead, Payload, concatenate
from student_worker.batches import Batch, Counts
from student_worker.payload_rows import slice_rows
from student_worker.students.base import Student

CHUNK_ROWS = 512
"""Rows of logits held at once: at 150,000 ids of float32, 300 MB for each of the few copies that are alive."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: `alpha` weighs cross-entropy, `1 - alpha` weighs KL at `temperature`.

    `output_head` rebuilds the teacher's logits where it answers with hidden states.
    """

    temperature: float
    alpha: float
    vocabulary_size: int
    top_k_tail: TopKTail = "bucket"
    output_head: OutputHead | None = None


@dataclass(frozen=True, slots=True)
class ShardLoss:
    """A micro-shard's share of the global batch's loss: the shares of all shards add up to it."""

    loss: float
    cross_entropy: float
    kl: float


def shard_seed(seed: int, step: int, shard: int) -> int:
    """Return the seed of a micro-shard's own randomness (dropout), whoever computes it."""
    digest = hashlib.blake2b(f"{seed} {step} {shard}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def backward(
    student: Student,
    batch: Batch,
    payloads: tuple[Payload, ...],
    objective: Objective,
    counts: Counts,
    *,
    seed: int,
    autocast: bool = False,
) -> ShardLoss:
    """Add one shard's gradient to the parameters' `.grad`, averaged over the *global* batch's `counts`.

    `payloads` hold the batch's rows in order. The process-wide random state is left as it was.

    Raises:
        ValueError: logits that are not finite where they count.
    """
    if batch.num_rows == 0:
        return ShardLoss(0.0, 0.0, 0.0)
    teacher = concatenate(payloads)
    batch = batch.to(student.device)
    student.module.train()
    cuda = [student.device] if student.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.autocast(student.device.type, torch.bfloat16, enabled=autocast):
        torch.manual_seed(seed)
        states = student.row_states(batch)
        leaf = states.detach().requires_grad_()
        total = ShardLoss(0.0, 0.0, 0.0)
        for start in range(0, batch.num_rows, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, batch.num_rows)
            logits = student.head(leaf[start:stop])
            part = kd_loss_and_gradient(
                logits.detach(),
                slice_rows(teacher, start, stop),
                batch.labels[start:stop],
                temperature=objective.temperature,
                alpha=objective.alpha,
                num_valid=counts.num_valid,
                num_labelled=counts.num_labelled,
                vocabulary_size=objective.vocabulary_size,
                output_head=objective.output_head,
                top_k_tail=objective.top_k_tail,
            )
            torch.autograd.backward(logits, part.gradient)
            total = ShardLoss(total.loss + part.loss, total.cross_entropy + part.cross_entropy, total.kl + part.kl)
        torch.autograd.backward(states, leaf.grad)
    return total
