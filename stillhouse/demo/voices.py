"""Lets teacher and students continue the same prompts, in plain transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROMPTS = (
    "The for statement is used to",
    "A class definition is",
    "If an exception is raised in the try clause,",
)


def continue_prompts(folder: Path, prompts: Sequence[str] = PROMPTS, new_tokens: int = 32) -> list[str]:
    """Return how the model in `folder` continues each prompt, greedily, at most `new_tokens` tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stillhouse.models import silence_transformers

    silence_transformers()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(folder)  # transformers types `generate` too loosely to call
    model.eval()
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
    with torch.inference_mode():
        ids = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    # One line each: small models like blank lines.
    return [" ".join(text.split()) for text in texts]
