"""A load client of `fronts`: keeps a service busy over several connections for a time, and compares every answer.

Told what to do in lines of JSON on its standard input; imports no torch, so that many of them fit beside a service.
Each connection asks for itself: the kernel deals connections out to the processes that share a port.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import grpc

from stillhouse.answer_messages import read_answer
from stillhouse.encodings import Dense, Encoding, TopK
from stillhouse.messages import request_to_proto
from stillhouse.payload_header import read_header
from stillhouse.request import LogitsRequest, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb

VOCABULARY = 49_152
_MAX_MESSAGE_BYTES = 64 * 2**20
_COMPUTE_LOGITS = f"/{pb.DESCRIPTOR.services_by_name['TeacherService'].full_name}/ComputeLogits"
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked for, on how many connections of each client, and how much at once on each of them."""

    encoding: Encoding
    sequences: int
    requests: int
    connections: int
    in_flight: int

    def asked(self) -> list[LogitsRequest]:
        """Return the different requests, which take turns."""
        return [
            LogitsRequest(
                tuple(
                    Sequence(tuple((7 * index + 31 * number + place) % VOCABULARY for place in range(8)))
                    for index in range(self.sequences)
                ),
                self.encoding,
            )
            for number in range(self.requests)
        ]


SETTINGS = {
    "small": Setting(TopK(8), sequences=1, requests=64, connections=8, in_flight=2),
    "dense": Setting(Dense("float32"), sequences=16, requests=4, connections=8, in_flight=1),
}


class _Load:
    """One setting asked of one service."""

    def __init__(self, address: str, setting: Setting) -> None:
        # Without a pool of its own each channel would share one connection with the others.
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._setting = setting
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(setting.connections)]
        # Bytes in and bytes out: a client must cost less than the service.
        self._calls: list[Any] = [one.unary_unary(_COMPUTE_LOGITS, None, None) for one in self._channels]
        self._asked = setting.asked()
        self._messages = [
            pb.ComputeLogitsRequest(request=request_to_proto(one)).SerializeToString() for one in self._asked
        ]
        self._expected: list[bytes] = []

    async def learn(self) -> None:
        """Have every answer remembered, and know it: each has the form that was asked for, and its checksum."""
        for request, message in zip(self._asked, self._messages, strict=True):
            await self._calls[0](message, timeout=_TIMEOUT_SECONDS)
            # A hit takes no time in the model, so that all hits have the same bytes, times included.
            hit: bytes = await self._calls[0](message, timeout=_TIMEOUT_SECONDS)
            answer = read_answer(hit)
            assert answer.cache_hits == self._setting.sequences, f"{answer.cache_hits} hits"
            headers = [read_header(memoryview(payload)) for payload in answer.payloads]
            rows = [(header.rows, header.width, header.value_type) for header in headers]
            assert len(rows) == len(request.sequences), rows
            assert set(rows) == {(1, VOCABULARY, getattr(request.encoding, "value_type", None))}, rows
            self._expected.append(hit)

    async def keep_busy(self, seconds: float) -> dict[str, float]:
        """Ask until the time is over; return how many were answered within it, their bytes, and the slow ones' time."""
        began, worked = time.perf_counter(), time.process_time()
        end = began + seconds
        took: list[float] = []
        num_bytes = 0

        async def ask(call: Any, start: int) -> None:
            nonlocal num_bytes
            numbers = cycle(range(len(self._messages)))
            for _ in range(start):
                next(numbers)
            while (asked_at := time.perf_counter()) < end:
                number = next(numbers)
                answer: bytes = await call(self._messages[number], timeout=_TIMEOUT_SECONDS)
                assert answer == self._expected[number], "another answer, or no hit"
                if (now := time.perf_counter()) < end:
                    took.append(now - asked_at)
                    num_bytes += len(answer)

        calls = [call for call in self._calls for _ in range(self._setting.in_flight)]
        await asyncio.gather(*(ask(call, 5 * number % len(self._messages)) for number, call in enumerate(calls)))
        took.sort()
        p50, p99 = (took[int(part * len(took))] if took else seconds for part in (0.5, 0.99))
        busy = (time.process_time() - worked) / (time.perf_counter() - began)
        return {"answers": len(took), "num_bytes": num_bytes, "p50_seconds": p50, "p99_seconds": p99, "busy": busy}


async def _obey() -> None:
    loads: dict[tuple[str, str], _Load] = {}
    while line := await asyncio.to_thread(sys.stdin.readline):
        told = json.loads(line)
        key = (told["address"], told["setting"])
        if key not in loads:
            loads[key] = _Load(key[0], SETTINGS[key[1]])
            await loads[key].learn()
        print(json.dumps(await loads[key].keep_busy(told["seconds"])), flush=True)


if __name__ == "__main__":
    assert "torch" not in sys.modules, "a load client needs no torch"
    asyncio.run(_obey())
