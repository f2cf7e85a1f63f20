"""One micro-shard's loss and gradient, in one forward pass or in several, head and loss by chunks of rows.

The body of the model runs once over each sample; the head, the loss and their gradients run over chunks of rows, so
that memory is bounded by the chunk and not by the vocabulary times the batch. Every part is averaged over the *global*
batch, so that gradients add up to the whole batch's. Knows nothing of workers or optimizers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from stillhouse.data import Sample
from stillhouse.kd import LossAndGradient, cross_entropy_and_gradient, kd_loss_and_gradient
from stillhouse.kd.divergences import DivergenceName
from stillhouse.kd.teacher import TopKTail
from stillhouse.payloads import OutputHead, Payload, concatenate
from student_worker.batches import Batch, Counts, make_batch
from student_worker.payload_rows import slice_rows
from student_worker.students.base import Student

CHUNK_ROWS = 512
"""Rows of logits held at once: at 150,000 ids of float32, 300 MB for each of the few copies that are alive."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: `alpha` weighs cross-entropy, `1 - alpha` weighs a divergence, `loss`, at `temperature`.

    `output_head` rebuilds the teacher's logits where it answers with hidden states; `jsd_beta` is read with jsd alone.
    """

    temperature: float
    alpha: float
    vocabulary_size: int
    top_k_tail: TopKTail = "bucket"
    output_head: OutputHead | None = None
    loss: DivergenceName = "forward_kl"
    jsd_beta: float = 0.5

    @property
    def asks_teacher(self) -> bool:
        """Whether anything is learnt from the teacher: nobody is asked where cross-entropy has all the weight."""
        return self.alpha < 1


@dataclass(frozen=True, slots=True)
class ShardLoss:
    """A share of the global batch's loss: the shares of all micro-shards, and of their parts, add up to it.

    `kl` is the objective's divergence, whichever it is, with its T^2; NaN where no teacher was asked.
    """

    loss: float
    cross_entropy: float
    kl: float

    def __add__(self, other: ShardLoss) -> ShardLoss:
        return ShardLoss(self.loss + other.loss, self.cross_entropy + other.cross_entropy, self.kl + other.kl)


NO_LOSS = ShardLoss(0.0, 0.0, 0.0)


def shard_seed(seed: int, step: int, shard: int, part: int = 0) -> int:
    """Return the seed of the randomness (dropout) of one forward pass of a micro-shard, whoever computes it."""
    digest = hashlib.blake2b(f"{seed} {step} {shard} {part}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def shard_gradient(
    student: Student,
    samples: Sequence[Sample],
    payloads: Sequence[Payload],
    objective: Objective,
    counts: Counts,
    *,
    seed: int,
    key: tuple[int, int],
    part_size: int | None = None,
    autocast: bool = False,
) -> ShardLoss:
    """Add one micro-shard's gradient to the parameters' `.grad`, averaged over the *global* batch's `counts`.

    Args:
        student: whose parameters' gradients are added to.
        samples: those of the shard, in order.
        payloads: one for each of them that has a row, in the same order; none where the objective asks nobody.
        objective: what is minimised.
        counts: of the global batch.
        seed: the run's.
        key: step and shard, which say with `seed` what is drawn at random.
        part_size: the most samples of one forward pass, `per_device_train_batch_size`; None: all in one. The parts
            follow from the samples alone, so the same bits come out whoever computes the shard.
        autocast: compute in bfloat16 where it is safe.

    Raises:
        ValueError: logits that are not finite where they count.
    """
    taught = sum(bool(sample.mask.any()) for sample in samples)
    if objective.asks_teacher and len(payloads) != taught:
        raise ValueError(f"a micro-shard of {taught} samples that are learnt from came with {len(payloads)} answers")
    total = NO_LOSS
    for part, (some, answers) in enumerate(_parts(samples, payloads, part_size or len(samples))):
        batch, part_seed = make_batch(some), shard_seed(seed, *key, part)
        total += backward(student, batch, answers, objective, counts, seed=part_seed, autocast=autocast)
    return total


def _parts(
    samples: Sequence[Sample], payloads: Sequence[Payload], size: int
) -> Iterator[tuple[Sequence[Sample], tuple[Payload, ...]]]:
    """Yield consecutive samples, each part with the payloads of those that have a row."""
    answers = iter(payloads)
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        yield part, tuple(islice(answers, sum(bool(sample.mask.any()) for sample in part)))


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
    """Add the gradient of one forward pass to the parameters' `.grad`, averaged over the *global* batch's `counts`.

    `payloads` hold the batch's rows in order. The process-wide random state is left as it was.

    Raises:
        ValueError: logits that are not finite where they count.
    """
    if batch.num_rows == 0:
        return NO_LOSS
    teacher = concatenate(payloads) if objective.asks_teacher else None
    batch = batch.to(student.device)
    student.module.train()
    cuda = [student.device] if student.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.autocast(student.device.type, torch.bfloat16, enabled=autocast):
        torch.manual_seed(seed)
        states = student.row_states(batch)
        leaf = states.detach().requires_grad_()
        total, out = NO_LOSS, None
        for start in range(0, batch.num_rows, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, batch.num_rows)
            logits = student.head(leaf[start:stop])
            # One buffer for the gradients of all chunks: to get fresh memory takes as long as to fill it.
            out = torch.empty_like(logits, requires_grad=False) if out is None else out[: stop - start]
            answer = None if teacher is None else slice_rows(teacher, start, stop)
            part = _loss(logits.detach(), answer, batch.labels[start:stop], objective, counts, out)
            torch.autograd.backward(logits, part.gradient)
            total += ShardLoss(part.loss, part.cross_entropy, part.kl)
        torch.autograd.backward(states, leaf.grad)
    return total


def _loss(
    logits: Tensor, answer: Payload | None, labels: Tensor, objective: Objective, counts: Counts, out: Tensor
) -> LossAndGradient:
    size = objective.vocabulary_size
    if answer is None:
        return cross_entropy_and_gradient(
            logits, labels, num_labelled=counts.num_labelled, vocabulary_size=size, out=out
        )
    return kd_loss_and_gradient(
        logits,
        answer,
        labels,
        temperature=objective.temperature,
        alpha=objective.alpha,
        num_valid=counts.num_valid,
        num_labelled=counts.num_labelled,
        vocabulary_size=size,
        output_head=objective.output_head,
        top_k_tail=objective.top_k_tail,
        loss=objective.loss,
        jsd_beta=objective.jsd_beta,
        out=out,
    )
