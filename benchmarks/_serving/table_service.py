"""The real teacher service in a process of its own, its backend the table of `peers.table`, and a load client for it.

    python -m benchmarks._serving.table_service serve
    python -m benchmarks._serving.table_service load ADDRESSES SETTING [DOOR]

The client is Stillhouse's own, over HTTP or gRPC; by the door `cache` answers are remembered, by the others each is
made anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from benchmarks.peers import table
from benchmarks.peers.loading import load, load_async
from benchmarks.peers.speaking import announce, speak
from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.encodings import Dense
from stillhouse.logs import configure_logging
from stillhouse.payloads import DenseLogits, OutputHead
from stillhouse.providers import Answer
from stillhouse.request import CacheMode, LogitsRequest, Sequence
from teacher_service import event_loop
from teacher_service.backends import BackendDescription, TeacherBackend
from teacher_service.backends.base import HiddenRows
from teacher_service.embedded_redis import EmbeddedRedis
from teacher_service.freed_memory import keep_freed_memory
from teacher_service.garbage import look_for_garbage_seldom
from teacher_service.service import TeacherService
from teacher_service.settings import TeacherSettings

_CACHE_BYTES = 2 * 2**30


class TableBackend(TeacherBackend):
    """Answers each position by the row of the table that its token names."""

    def __init__(self) -> None:
        self._hidden = torch.from_numpy(table.hidden_states())
        self._head = OutputHead(torch.from_numpy(table.output_head()))
        self._logits = self._hidden @ self._head.weight.T

    def describe(self) -> BackendDescription:
        """Describe it."""
        return BackendDescription(
            model="table", weights_fingerprint="0" * 32, tokenizer_fingerprint="", vocabulary_size=table.VOCABULARY,
            hidden_size=table.HIDDEN_SIZE, max_sequence_tokens=8192, compute_dtype="float32", device_kind="cpu",
            library_version="1", attention="none", mode="throughput",
        )  # fmt: skip

    def forward(self, sequences: SequenceOf[Sequence]) -> HiddenRows:
        """Return the hidden states of the positions asked for."""
        ids = [one.token_ids[index] % table.ROWS for one in sequences for index in one.position_indices()]
        rows = self._hidden.index_select(0, torch.tensor(ids))
        return HiddenRows(torch.split(rows, [one.num_positions for one in sequences]), padding_tokens=0)

    def head(self, hidden_rows: Tensor) -> Tensor:
        """Return the rows that the first column names."""
        return self._logits.index_select(0, hidden_rows[:, 0].long())

    def output_head(self) -> OutputHead:
        """Return the true one: who rebuilds has the table."""
        return self._head


def serve() -> None:
    """Serve until killed."""
    configure_logging("error", "json")
    # As the service's own process does.
    keep_freed_memory()
    look_for_garbage_seldom()
    # The clients have the other core: two threads that wait for each other at every look-up would wait for them.
    torch.set_num_threads(1)
    with EmbeddedRedis(_CACHE_BYTES) as redis:
        event_loop.run(_serve(redis.url))


async def _serve(redis_url: str) -> None:
    # A table gains nothing by batches: one large request at a time, as the peers have it. A look-up in the cache that
    # comes too late would be computed instead.
    settings = TeacherSettings(
        backend="table",
        http_port=0,
        grpc_port=0,
        cache_timeout_seconds=10,
        max_batch_tokens=table.SETTINGS["large"].sequences,
    )
    service = TeacherService(settings, ThreadPoolExecutor(1), redis_url, opener=lambda _: TableBackend())
    await service.open()
    await service.load()
    http = f"http://127.0.0.1:{service.http_port}"
    announce({"http": http, "cache": http, "grpc": f"127.0.0.1:{service.grpc_port}"})
    await asyncio.Event().wait()


def load_door(address: str, door: str, setting: table.Setting) -> None:
    """Ask as a user does: requests in, tensors out; over HTTP from as many threads as there are clients."""
    if door == "grpc":
        asyncio.run(_load_grpc(address, setting))
        return
    cache_mode: CacheMode = "use" if door == "cache" else "bypass"
    with TeacherClient(address) as client:
        load(setting, lambda: lambda ids: _rows(client.answer(request_about(ids, cache_mode))))


async def _load_grpc(address: str, setting: table.Setting) -> None:
    async with AsyncTeacherClient(address) as client:

        async def ask(ids: table.Ids) -> object:
            return _rows(await client.answer(request_about(ids, "bypass")))

        await load_async(setting, ask)


def request_about(ids: table.Ids, cache_mode: CacheMode) -> LogitsRequest:
    """Return the request for these ids, one sequence each."""
    return LogitsRequest(
        tuple(Sequence((token,)) for token in ids.tolist()),
        Dense("float32"),
        vocabulary_size=table.VOCABULARY if len(ids) > 1 else table.FEW_VALUES,
        cache_mode=cache_mode,
    )


def _rows(answer: Answer) -> list[object]:
    return [_values(payload) for payload in answer.payloads]


def _values(payload: object) -> object:
    assert isinstance(payload, DenseLogits)
    return payload.logits.numpy()


if __name__ == "__main__":
    speak(serve, load_door)
