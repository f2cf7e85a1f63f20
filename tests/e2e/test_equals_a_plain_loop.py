"""A student trained through the service equals one trained by a plain loop with both models in one process.

The loop below shares no code with the trainer: one document at a time, no padding, no packing, torch's own losses,
autograd, clipping and AdamW, and transformers' own schedule. Only the samples and their order are the library's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from stillhouse.data import DataSpec, Order, Sample, prepare

STEPS, BATCH, TEMPERATURE, ALPHA, RATE, WARMUP, DECAY, CLIP, SEED = 20, 6, 2.0, 0.3, 1e-3, 3, 0.01, 0.5, 7


def plain_loop(teacher_folder: Path, corpus: Path, cache: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Distil the teacher's second layer; return the weights and the losses."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

    teacher: Any = AutoModelForCausalLM.from_pretrained(teacher_folder)
    student: Any = AutoModelForCausalLM.from_pretrained(teacher_folder, num_hidden_layers=1)
    teacher.eval()
    student.train()
    student.model.layers[0].load_state_dict(teacher.model.layers[1].state_dict())
    data = DataSpec(
        sources=(str(corpus / "notes.txt"), str(corpus / "talks.jsonl")),
        text_separator="\n\n",
        block_size=32,
        held_out_samples=6,
    )
    train = prepare(data, AutoTokenizer.from_pretrained(teacher_folder), cache).train
    order = Order(len(train), SEED, train.fingerprint)
    decayed = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}], lr=RATE
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses = []
    for step in range(STEPS):
        samples = [train[int(index)] for index in order.sample_ids(step * BATCH, BATCH)]
        valid = sum(int(sample.mask.sum()) for sample in samples)
        labelled = sum(int((sample.mask & (sample.labels >= 0)).sum()) for sample in samples)
        loss = torch.zeros(())
        for sample in samples:
            cross_entropy, kl = sample_loss(teacher, student, sample)
            loss = loss + ALPHA * cross_entropy / labelled + (1 - ALPHA) * TEMPERATURE**2 * kl / valid
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return {name: tensor.detach() for name, tensor in student.named_parameters()}, losses


def sample_loss(teacher: Any, student: Any, sample: Sample) -> tuple[Tensor, Tensor]:
    """Return the sums of CE and KL (before T^2) over a sample, each of its documents run through alone."""
    cross_entropy, kl, start = torch.zeros(()), torch.zeros(()), 0
    for length in sample.segment_lengths:
        part = slice(start, start + length)
        start += length
        mask = torch.from_numpy(sample.mask[part].copy())
        ids = torch.from_numpy(sample.token_ids[part].astype("int64"))[None]
        labels = torch.from_numpy(sample.labels[part].copy())[mask]
        with torch.no_grad():
            target = (teacher(ids).logits[0][mask] / TEMPERATURE).log_softmax(-1)
        logits = student(ids).logits[0][mask]
        kl = kl + functional.kl_div((logits / TEMPERATURE).log_softmax(-1), target, reduction="sum", log_target=True)
        if bool((labels >= 0).any()):
            cross_entropy = cross_entropy + functional.cross_entropy(logits, labels, reduction="sum")
    return cross_entropy, kl


@pytest.fixture(scope="module")
def by_hand(
    tiny_llama_folder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], list[float]]:
    return plain_loop(tiny_llama_folder, corpus, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("encoding", "asked"), [("auto", "hidden:f32"), pytest.param("dense:f32", "dense:f32", marks=pytest.mark.long)]
)
def test_twenty_steps_through_the_service_equal_twenty_steps_of_a_plain_loop(
    train: Any,
    by_hand: tuple[dict[str, Tensor], list[float]],
    tiny_llama_folder: Path,
    tmp_path: Path,
    encoding: str,
    asked: str,
) -> None:
    run = train(
        tmp_path / "run",
        encoding=encoding,
        temperature=TEMPERATURE,
        alpha=ALPHA,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        seed=SEED,
        eval_steps=0,
    )
    assert run.returncode == 0, run.stderr
    assert f'"encoding": "{asked}"' in run.stderr
    expected, losses = by_hand

    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert [record["loss"] for record in records] == pytest.approx(losses, abs=1e-4)
    trained = load_file(tmp_path / "run" / "export" / "model.safetensors")
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-4)
    start = load_file(tiny_llama_folder / "model.safetensors")
    moved = (trained["model.embed_tokens.weight"] - start["model.embed_tokens.weight"]).abs().max()
    assert moved > 1e-3, "a student that never moved would prove nothing"
