"""Positions a second, by encoding, of what the service of `table_service` has in its cache.

Every answer is compared with the first of its kind, and that with the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from benchmarks.peers.table import ROWS, table
from stillhouse.client import AsyncTeacherClient
from stillhouse.encodings import Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.payloads import DenseLogits, HiddenStates, OutputHead, Payload, TopKLogits
from stillhouse.providers import Answer
from stillhouse.request import All, LogitsRequest, Sequence

IN_FLIGHT = 4
SEQUENCES = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """An encoding, how many positions each of the sequences has, and whether the logits are rebuilt.

    `requests` are asked in a round: as many as take about as long in every encoding.
    """

    encoding: Encoding
    positions: int
    requests: int = 16
    rebuilds: bool = False


ENCODINGS = {
    "dense:f32": Asked(Dense("float32"), 1, 64),
    "hidden:bf16": Asked(Hidden("bfloat16"), 128),
    "hidden:bf16, logits rebuilt": Asked(Hidden("bfloat16"), 1, 4, rebuilds=True),
    "top_k:64": Asked(TopK(64), 128),
    "sampled:50": Asked(Sampled(50), 128),
}


class Positions:
    """Asks for one encoding after the other."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._runner = asyncio.Runner()
        self._table = torch.from_numpy(table())
        self._first: dict[str, tuple[Payload, ...]] = {}

    def __enter__(self) -> Self:
        self._client = AsyncTeacherClient(self._address)
        self._head: OutputHead = self._runner.run(self._client.output_head("float32"))
        for name, asked in ENCODINGS.items():
            self._runner.run(self._client.answer(_request(asked)))  # so that it is remembered
            answer = self._runner.run(self._client.answer(_request(asked)))
            self._first[name] = answer.payloads
            self._check_first(asked, answer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def ask(self, name: str, requests: int) -> int:
        """Ask so often, some at once; return how many positions came."""
        numbers = iter(range(requests))
        return self._runner.run(self._ask_all(name, numbers))

    async def _ask_all(self, name: str, numbers: Iterator[int]) -> int:
        asked, first = ENCODINGS[name], self._first[name]

        async def client() -> int:
            count = 0
            for _ in numbers:
                answer = await self._client.answer(_request(asked))
                assert answer.cache_hits == SEQUENCES
                assert all(map(_same, first, answer.payloads)), f"{name}: an answer that differs from the first"
                if asked.rebuilds:
                    for payload in answer.payloads:
                        self._rebuild(payload)
                count += sum(payload.num_positions for payload in answer.payloads)
            return count

        return sum(await asyncio.gather(*(client() for _ in range(IN_FLIGHT))))

    def _rebuild(self, payload: Payload) -> Tensor:
        assert isinstance(payload, HiddenStates)
        return self._head.logits(payload.hidden)

    def _check_first(self, asked: Asked, answer: Answer) -> None:
        for index, payload in enumerate(answer.payloads):
            right = self._table[[_token(index, place) for place in range(asked.positions)]]
            match payload:
                case DenseLogits(logits):
                    assert torch.equal(logits, right)
                case HiddenStates():
                    assert torch.equal(self._rebuild(payload), right)
                case TopKLogits():
                    assert torch.equal(payload.logits, right.gather(1, payload.token_ids.long()).to(payload.logits))
                case _:
                    pass


def _token(index: int, place: int) -> int:
    return (index + 3 * place) % ROWS


def _request(asked: Asked) -> LogitsRequest:
    return LogitsRequest(
        tuple(
            Sequence(tuple(_token(index, place) for place in range(asked.positions)), positions=All())
            for index in range(SEQUENCES)
        ),
        asked.encoding,
    )


def _same(one: Payload, other: Payload) -> bool:
    pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
