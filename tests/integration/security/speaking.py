"""How these tests speak with a service: clients, bare channels, and a teacher that can be held up."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from collections.abc import Sequence as SequenceOf
from contextlib import asynccontextmanager
from typing import Any

import grpc

from stillhouse.client import AsyncTeacherClient
from stillhouse.request import Sequence
from teacher_service.backends import HiddenRows
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.service import TeacherService

FIRST, SECOND, THIRD = "first-token-0123456789", "second-token-0123456789", "third-token-0123456789"


class GatedBackend(FixtureBackend):
    """Waits at a gate before each batch."""

    def __init__(self) -> None:
        super().__init__(64)
        self.gate = threading.Event()

    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        assert self.gate.wait(20)
        return super().forward(sequences)


def client_of(service: TeacherService, token: str | None = None) -> AsyncTeacherClient:
    return AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}", token=token, max_attempts=1)


@asynccontextmanager
async def raw(service: TeacherService, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    address = f"127.0.0.1:{service.grpc_port}"
    async with grpc.aio.insecure_channel(address, options=list(options.items())) as channel:
        yield channel
