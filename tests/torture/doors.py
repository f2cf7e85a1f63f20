"""Every way to ask a teacher, each giving payloads: gRPC in one message or as a stream, HTTP as JSON or as Arrow.

The gRPC ways are the bare calls, without the client's retries and checks, so that a test sees the very bytes.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from collections.abc import Sequence as SequenceOf
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import grpc
import httpx
import pyarrow as pa
import torch
from torch import Tensor

from stillhouse.codec import encode_payload
from stillhouse.encodings import Candidates, Dense, Hidden, Sampled, TopK
from stillhouse.messages import request_to_proto
from stillhouse.payloads import CandidateLogits, DenseLogits, HiddenStates, Payload, SampledCounts, TopKLogits
from stillhouse.request import All, Explicit, From, Last, LogitsRequest, Positions, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from tests.torture.reference import VOCABULARY_SIZE

ARROW = "application/vnd.apache.arrow.stream"
STATISTICS = ("log_normalizer", "log_tail_mass", "tempered_log_normalizer", "tempered_log_tail_mass")
KINDS = {Dense: "dense", Hidden: "hidden", TopK: "top_k", Sampled: "sampled", Candidates: "candidates"}

_PUSHBACK = "grpc-retry-pushback-ms"
_MOST_ATTEMPTS = 200


@dataclass(frozen=True, slots=True)
class Bytes:
    """The payloads of an answer as they came, and how many of them the cache gave."""

    payloads: tuple[bytes, ...]
    cache_hits: int


class GrpcDoor:
    """Asks over one channel; a queue that is full is asked again when it says."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = pb_grpc.TeacherServiceStub(channel)

    async def ask(self, request: LogitsRequest) -> Bytes:
        """Ask for an answer in one message."""
        message = pb.ComputeLogitsRequest(request=request_to_proto(request))
        for _ in range(_MOST_ATTEMPTS):
            try:
                answer = await self.stub.ComputeLogits(message, timeout=120)
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(_pushback_seconds(error))
            else:
                return Bytes(tuple(answer.payloads), answer.cache_hits)
        raise AssertionError("the queue never emptied")

    async def stream(self, request: LogitsRequest) -> Bytes:
        """Ask for an answer in chunks."""
        sizes: SequenceOf[int] = ()
        data, hits = bytearray(), -1
        async for part in self.stub.StreamLogits(
            pb.StreamLogitsRequest(request=request_to_proto(request)), timeout=120
        ):
            sizes = part.header.payload_bytes or sizes
            assert not part.chunk.data or part.chunk.offset == len(data)
            data += part.chunk.data
            hits = part.trailer.cache_hits if part.HasField("trailer") else hits
        assert hits >= 0, "the stream has no trailer"
        view, payloads = memoryview(data), []
        for size in sizes:
            payloads.append(bytes(view[:size]))
            view = view[size:]
        assert not view
        return Bytes(tuple(payloads), hits)


def _pushback_seconds(error: grpc.aio.AioRpcError) -> float:
    """Return when to come again; an error that names no time is raised."""
    trailers: Any = error.trailing_metadata()
    pushback = dict(trailers or ()).get(_PUSHBACK)
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or pushback is None:
        raise error
    return int(pushback) / 1000


@asynccontextmanager
async def grpc_door(address: str) -> AsyncIterator[GrpcDoor]:
    """Open a channel to a teacher."""
    async with grpc.aio.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        yield GrpcDoor(channel)


async def ask_json(http: httpx.AsyncClient, request: LogitsRequest) -> tuple[list[Payload], int]:
    """Ask for JSON; return the payloads that it describes, and the hits."""
    response = await http.post("/v1/logits", json=body_of(request))
    response.raise_for_status()
    answer = response.json()
    columns = [{name: value for name, value in part.items() if name != "kind"} for part in answer["payloads"]]
    return _payloads(request, columns), answer["cache_hits"]


async def ask_arrow(http: httpx.AsyncClient, request: LogitsRequest) -> tuple[list[Payload], int]:
    """Ask for Arrow; return the payloads that it describes, and the hits."""
    response = await http.post("/v1/logits", json=body_of(request), headers={"accept": ARROW})
    response.raise_for_status()
    table = pa.ipc.open_stream(io.BytesIO(response.content)).read_all()
    columns, start = [], 0
    for index, sequence in enumerate(request.sequences):
        part = table.slice(start, sequence.num_positions)
        start += sequence.num_positions
        assert part["sequence"].to_pylist() == [index] * sequence.num_positions
        columns.append(
            {name.removesuffix("position") or "positions": part[name].to_pylist() for name in part.schema.names}
        )
    assert start == table.num_rows
    return _payloads(request, columns), int(table.schema.metadata[b"cache_hits"])


def body_of(request: LogitsRequest) -> dict[str, Any]:
    """Return the JSON of a request."""
    return {
        "sequences": [
            {
                "token_ids": sequence.token_ids,
                "segment_lengths": sequence.segment_lengths,
                "positions": _positions(sequence.positions),
                "candidate_ids": sequence.candidate_ids,
            }
            for sequence in request.sequences
        ],
        "encoding": {"kind": KINDS[type(request.encoding)], **asdict(request.encoding)},
        "temperature": request.temperature,
        "vocabulary_size": request.vocabulary_size,
        "cache_mode": request.cache_mode,
    }


def _positions(positions: Positions) -> object:
    match positions:
        case Last():
            return "last"
        case All():
            return "all"
        case From(start):
            return {"from": start}
        case Explicit(indices):
            return {"explicit": indices}


def _payloads(request: LogitsRequest, columns: list[dict[str, Any]]) -> list[Payload]:
    assert len(columns) == len(request.sequences)
    return [_payload(request, sequence, c) for sequence, c in zip(request.sequences, columns, strict=True)]


def _payload(request: LogitsRequest, sequence: Sequence, columns: dict[str, Any]) -> Payload:
    assert columns["positions"] == list(sequence.position_indices())
    about: dict[str, Any] = {
        "temperature": float(request.temperature),
        "vocabulary_size": request.vocabulary_size or VOCABULARY_SIZE,
    }
    match request.encoding:
        case Dense(value_type):
            return DenseLogits(_values(columns["logits"], getattr(torch, value_type)))
        case Hidden(value_type):
            return HiddenStates(_values(columns["hidden"], getattr(torch, value_type)))
        case TopK(_, value_type) | Candidates(_, value_type):
            statistics: dict[str, Any] = {name: _values(columns[name]) for name in STATISTICS}
            ids = torch.tensor(columns["token_ids"], dtype=torch.int32)
            if isinstance(request.encoding, TopK):
                return TopKLogits(ids, _values(columns["logits"], getattr(torch, value_type)), **statistics, **about)
            if request.encoding.token_ids and ids.dim() == 2:  # Arrow says them for each row
                assert (ids == ids[0]).all()
                ids = ids[0]
            return CandidateLogits(ids, _values(columns["logits"], getattr(torch, value_type)), **statistics, **about)
        case Sampled(draws, _):
            ends = torch.tensor([0, *map(len, columns["token_ids"])]).cumsum(0)
            ids, counts = (
                torch.tensor(list(chain(*columns[name])), dtype=torch.int32) for name in ("token_ids", "counts")
            )
            return SampledCounts(ends, ids, counts, _values(columns["entropy"]), draws, **about)


def _values(rows: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the numbers as a tensor; JSON's null and Arrow's infinity are -inf."""
    text = json.dumps(rows).replace("null", "-Infinity")
    return torch.tensor(json.loads(text), dtype=dtype)


def same_bytes(payloads: SequenceOf[Payload], expected: Bytes) -> bool:
    """Return whether payloads hold exactly what these bytes hold."""
    return tuple(bytes(encode_payload(payload)) for payload in payloads) == expected.payloads
