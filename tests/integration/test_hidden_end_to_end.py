"""HIDDEN through the whole way: a client rebuilds the teacher's own logits at any temperature."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import torch

from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.encodings import Dense, Hidden
from stillhouse.errors import EncodingNotOfferedError
from stillhouse.kd import kd_loss_and_gradient, kd_step
from stillhouse.payloads import DenseLogits, HiddenStates
from teacher_service.backends.transformers import TransformersBackend
from teacher_service.service import TeacherService
from tests.tiny_models import VOCABULARY_SIZE, tiny_model

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

IDS = [[1, 5, 9, 13, 2], [7, 8]]
ARCHITECTURES = ["llama", "qwen2", "gemma2", "cohere", "granite", "gpt2", "phi", "opt"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_rebuilt_logits_are_the_teachers_own(serve_teacher: ServeTeacher, architecture: str, tied: bool) -> None:
    model = tiny_model(architecture, tied=tied)
    backend = TransformersBackend(model, name=architecture)
    async with (
        serve_teacher(given=backend) as service,
        AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client,
    ):
        head = await client.output_head()
        assert head is await client.output_head()
        answers = await client.logits(IDS, encoding=Hidden("float32"))
        for ids, answer in zip(IDS, answers, strict=True):
            assert isinstance(answer, HiddenStates)
            with torch.inference_mode():
                own = model(torch.tensor([ids])).logits[0]
            torch.testing.assert_close(head.logits(answer.hidden), own, atol=1e-3, rtol=0)
            torch.testing.assert_close(head.logits(answer.hidden, 40), own[:, :40], atol=1e-3, rtol=0)
        student = torch.randn(5, VOCABULARY_SIZE, generator=torch.Generator().manual_seed(0))
        dense = (await client.logits(IDS[:1], encoding=Dense()))[0]
        assert isinstance(dense, DenseLogits)
        for temperature in (1.0, 1.5, 4.0):
            rebuilt = kd_loss_and_gradient(student, answers[0], temperature=temperature, alpha=0.0, output_head=head)
            plain = kd_loss_and_gradient(student, dense, temperature=temperature, alpha=0.0)
            assert rebuilt.loss == pytest.approx(plain.loss, rel=1e-4)
            torch.testing.assert_close(rebuilt.gradient, plain.gradient, atol=1e-5, rtol=1e-3)


async def test_a_step_fetches_the_head_by_itself(serve_teacher: ServeTeacher) -> None:
    backend = TransformersBackend(tiny_model("gemma2"), name="gemma2")
    async with serve_teacher(given=backend) as service:

        def steps() -> None:
            with TeacherClient(f"127.0.0.1:{service.grpc_port}") as client:
                student = torch.zeros(2, VOCABULARY_SIZE)
                asked = kd_step(client, IDS, [1, 2], 2.0, 0.3, lambda _: student, encoding=Hidden("float32"))
                plain = kd_step(client, IDS, [1, 2], 2.0, 0.3, lambda _: student, encoding=Dense())
                assert asked[0] == pytest.approx(plain[0], rel=1e-4)
                assert client.output_head("bfloat16").weight.dtype == torch.bfloat16

        await asyncio.to_thread(steps)


async def test_a_teacher_without_hidden_states_says_so(serve_teacher: ServeTeacher) -> None:
    class Headless(TransformersBackend):
        """A model whose head is not understood."""

        def output_head(self) -> None:
            return None

    backend = Headless(tiny_model("llama"), name="llama")
    async with (
        serve_teacher(given=backend) as service,
        AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}") as client,
    ):
        assert Hidden not in (await client.describe()).encodings
        with pytest.raises(EncodingNotOfferedError):
            await client.logits(IDS, encoding=Hidden())
        with pytest.raises(EncodingNotOfferedError):
            await client.output_head()
