"""The same training in plain torch, which shares no code with the trainer but samples and their order.

One sample at a time, autograd through published formulas, torch's own AdamW and clipping, transformers' own schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.data import DataSpec, Order, PackedDataset, Sample, prepare


@dataclass(frozen=True, slots=True)
class Settings:
    """A recipe's keys, by their own names."""

    steps: int = 4
    global_batch_size: int = 6
    learning_rate: float = 3e-3
    lr_scheduler_type: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-5
    max_grad_norm: float = 1.0
    temperature: float = 2.0
    alpha: float = 0.3
    loss: str = "forward_kl"
    jsd_beta: float = 0.5
    seed: int = 7


def dataset(teacher_folder: Path, texts: Path, cache: Path) -> PackedDataset:
    """Return the samples that the recipes of these tests train on."""
    from transformers import AutoTokenizer

    spec = DataSpec(sources=(str(texts),), text_separator="\n\n", block_size=32)
    return prepare(spec, AutoTokenizer.from_pretrained(teacher_folder), cache).train


def plain_loop(settings: Settings, teacher_folder: Path, train: PackedDataset) -> dict[str, Tensor]:
    """Distil the teacher's second layer; return the weights."""
    from transformers import AutoModelForCausalLM, get_scheduler

    teacher: Any = AutoModelForCausalLM.from_pretrained(teacher_folder)
    student: Any = AutoModelForCausalLM.from_pretrained(teacher_folder, num_hidden_layers=1)
    student.model.layers[0].load_state_dict(teacher.model.layers[1].state_dict())
    student.train()
    groups = [
        {"params": [p for p in student.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in student.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    betas = (settings.adam_beta1, settings.adam_beta2)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.adam_epsilon)
    shape = "constant_with_warmup" if settings.lr_scheduler_type == "constant" else settings.lr_scheduler_type
    schedule = get_scheduler(shape, optimizer, settings.warmup_steps, settings.steps)
    order, size = Order(len(train), settings.seed, train.fingerprint), settings.global_batch_size
    for step in range(settings.steps):
        samples = [train[int(index)] for index in order.sample_ids(step * size, size)]
        valid = sum(int(sample.mask.sum()) for sample in samples)
        labelled = sum(int((sample.mask & (sample.labels >= 0)).sum()) for sample in samples)
        optimizer.zero_grad()
        for sample in samples:
            cross_entropy, divergence = _sample_loss(teacher, student, sample, settings)
            weight = (1 - settings.alpha) * settings.temperature**2 / valid
            torch.autograd.backward(settings.alpha * cross_entropy / labelled + weight * divergence)
        if settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(student.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
    return {name: tensor.detach() for name, tensor in student.named_parameters()}


def _sample_loss(teacher: Any, student: Any, sample: Sample, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the sums of cross-entropy and divergence over a sample, each of its documents run through alone."""
    cross_entropy, divergence, start = torch.zeros(()), torch.zeros(()), 0
    for length in sample.segment_lengths:
        part = slice(start, start + length)
        start += length
        mask = torch.from_numpy(sample.mask[part].copy())
        ids = torch.from_numpy(sample.token_ids[part].astype("int64"))[None]
        labels = torch.from_numpy(sample.labels[part].copy())[mask]
        with torch.no_grad():
            p = (teacher(ids).logits[0][mask] / settings.temperature).softmax(-1)
        logits = student(ids).logits[0][mask]
        q = (logits / settings.temperature).softmax(-1)
        divergence = divergence + _divergence(settings, p, q)
        if bool((labels >= 0).any()):
            cross_entropy = cross_entropy + functional.cross_entropy(logits, labels, reduction="sum")
    return cross_entropy, divergence


def _divergence(settings: Settings, p: Tensor, q: Tensor) -> Tensor:
    if settings.loss == "forward_kl":
        return (p * (p / q).log()).sum()
    if settings.loss == "reverse_kl":
        return (q * (q / p).log()).sum()
    m = settings.jsd_beta * p + (1 - settings.jsd_beta) * q
    return settings.jsd_beta * (p * (p / m).log()).sum() + (1 - settings.jsd_beta) * (q * (q / m).log()).sum()
