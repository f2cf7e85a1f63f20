"""The real SmolLM2, out of its wheel: found, converted once, and served as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.client import AsyncTeacherClient
from stillhouse.encodings import Dense, TopK
from stillhouse.models import load_causal_lm, load_tokenizer, resolve_model
from stillhouse.payloads import DenseLogits, TopKLogits
from stillhouse.request import All, LogitsRequest, Sequence
from teacher_service.service import TeacherService

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

pytestmark = [pytest.mark.real_weights, pytest.mark.timeout(600)]

TEXTS = ("The capital of France is", "def add(a, b):\n    return", "Whisky is distilled in a pot still, and")


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_model("smollm2")


def test_a_gguf_file_is_converted_once(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_model("smollm2") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert load_tokenizer(folder).decode(load_tokenizer(folder)("a still").input_ids) == "a still"


async def test_served_logits_equal_the_models_own(serve_teacher: ServeTeacher, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    batch = [tuple(tokenizer(text).input_ids) for text in TEXTS]
    model: Any = load_causal_lm(folder)
    with torch.inference_mode():
        own = [model(torch.tensor([ids]), use_cache=False).logits[0] for ids in batch]
    del model
    async with (
        serve_teacher(backend="transformers", model="smollm2", dtype="float32") as service,
        AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client,
    ):
        packed = Sequence(sum(batch, ()), tuple(map(len, batch)), All())
        sequences = (*(Sequence(ids, (), All()) for ids in batch), packed)
        dense, head = await asyncio.gather(
            client.answer(LogitsRequest(sequences, Dense())),
            client.answer(LogitsRequest(sequences, TopK(5, "float32"), temperature=2.0)),
        )
        for payload, logits in zip(dense.payloads, [*own, torch.cat(own)], strict=True):
            assert isinstance(payload, DenseLogits)
            torch.testing.assert_close(payload.logits, logits, atol=1e-3, rtol=0)
        for answer, logits in zip(head.payloads, [*own, torch.cat(own)], strict=True):
            assert isinstance(answer, TopKLogits)
            torch.testing.assert_close(answer.logits, logits.topk(5).values, atol=1e-3, rtol=0)
            torch.testing.assert_close(answer.tempered_log_normalizer, (logits / 2).logsumexp(-1), atol=1e-3, rtol=0)
