"""A client of the HTTP door, and a backend whose work a test can hold up and count."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as SequenceOf
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx

from stillhouse.request import Sequence
from teacher_service.backends import HiddenRows
from teacher_service.backends.fixture import FixtureBackend
from teacher_service.service import TeacherService

ServeTeacher = Callable[..., AbstractAsyncContextManager[TeacherService]]

ARROW = "application/vnd.apache.arrow.stream"
PROBLEM = "application/problem+json"


@asynccontextmanager
async def http_to(service: TeacherService, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{service.http_port}"
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as http:
        yield http


class HeldBackend(FixtureBackend):
    """Computes only while its gate is open."""

    def __init__(self, vocabulary_size: int = 64) -> None:
        super().__init__(vocabulary_size)
        self.gate = threading.Event()
        self.started = threading.Event()
        self.num_tokens = 0

    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        self.started.set()
        assert self.gate.wait(20)
        self.num_tokens += sum(len(sequence.token_ids) for sequence in sequences)
        return super().forward(sequences)
