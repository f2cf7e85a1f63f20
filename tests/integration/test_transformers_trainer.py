"""The batch-level loss inside transformers' own Trainer, with its own count of items over accumulated parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from stillhouse.fixtures import FixtureTeacher
from stillhouse.kd import causal_lm_kd_loss

V = 23
PAD = 0


def collate(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad on the left; padding and the first half of each sample are not learnt."""
    length = max(len(sample["input_ids"]) for sample in samples)
    ids = torch.full((len(samples), length), PAD)
    labels = torch.full((len(samples), length), -100)
    for row, sample in enumerate(samples):
        tokens = torch.tensor(sample["input_ids"])
        ids[row, length - len(tokens) :] = tokens
        labels[row, length - len(tokens) // 2 :] = tokens[-(len(tokens) // 2) :]
    return {"input_ids": ids, "labels": labels, "attention_mask": (ids != PAD).long()}


class DistillingTrainer(Trainer):
    """Trains on our loss, and notes the Trainer's own beside it."""

    alpha = 1.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.losses: list[tuple[float, float]] = []

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        theirs, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        ours = causal_lm_kd_loss(
            outputs.logits,
            FixtureTeacher(V),
            inputs["labels"],
            attention_mask=inputs["attention_mask"],
            input_ids=inputs["input_ids"],
            num_items_in_batch=num_items_in_batch,
            temperature=1.0,
            alpha=self.alpha,
        )
        self.losses.append((ours.item(), theirs.item()))
        return (ours, outputs) if return_outputs else ours


def trainer(folder: Path, alpha: float, steps: int) -> DistillingTrainer:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=PAD
    )
    samples = [{"input_ids": [1 + (3 * row + j) % (V - 1) for j in range(4 + row % 5)]} for row in range(16)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    made = DistillingTrainer(LlamaForCausalLM(config), arguments, data_collator=collate, train_dataset=samples)
    made.alpha = alpha
    return made


def test_at_alpha_one_every_part_of_every_step_has_the_trainers_own_loss(tmp_path: Path) -> None:
    made = trainer(tmp_path, alpha=1.0, steps=3)
    made.train()
    assert len(made.losses) >= 8
    for ours, theirs in made.losses:
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_trainer_learns_from_a_teacher(tmp_path: Path) -> None:
    made = trainer(tmp_path, alpha=0.0, steps=30)
    made.train()
    losses = [ours for ours, _ in made.losses]
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])
