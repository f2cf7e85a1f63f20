"""A small teacher behind a real gRPC server, which can be told to fail or to answer wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import grpc
import torch

from stillhouse.chunks import split
from stillhouse.codec import encode_payload
from stillhouse.encode import encode_logits
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, TopK, ValueType
from stillhouse.errors import (
    TeacherError,
    TeacherUnavailableError,
)
from stillhouse.head_codec import encode_output_head
from stillhouse.messages import description_to_proto, request_from_proto
from stillhouse.payloads import OutputHead
from stillhouse.providers import Answer
from stillhouse.request import All, Limits, LogitsRequest, Sequence, TeacherDescription
from stillhouse.status import status_of
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as rpc

VOCABULARY_SIZE = 50
DESCRIPTION = TeacherDescription(
    model="table", fingerprint="aa" * 16, weights_fingerprint="", tokenizer_fingerprint="",
    vocabulary_size=VOCABULARY_SIZE, tokenizer_size=VOCABULARY_SIZE, hidden_size=0, encodings=(Dense, TopK, Candidates),
    limits=Limits(max_sequences=4, max_sequence_tokens=6000, max_request_tokens=6000), compute_dtype="float32",
    mode="deterministic", version="test", tokens=tuple(map(chr, range(VOCABULARY_SIZE))),
)  # fmt: skip
TABLE = torch.randn(VOCABULARY_SIZE, VOCABULARY_SIZE, generator=torch.Generator().manual_seed(0))
HEAD = OutputHead(
    torch.randn(VOCABULARY_SIZE, 8, generator=torch.Generator().manual_seed(1)), torch.ones(VOCABULARY_SIZE)
)
OFFERS_HIDDEN = replace(DESCRIPTION, hidden_size=8, encodings=(*DESCRIPTION.encodings, Hidden))

Fault = Callable[[grpc.ServicerContext], None]


@dataclass
class TableServicer(rpc.TeacherServiceServicer):
    """Answers from a table of logits by token id; each pending fault is the end of one call."""

    description: TeacherDescription = DESCRIPTION
    faults: list[Fault] = field(default_factory=list)
    alter: Callable[[list[bytes]], list[bytes]] = list
    alter_stream: Callable[[list[pb.StreamLogitsResponse]], list[pb.StreamLogitsResponse]] = list
    alter_head: Callable[[list[pb.GetOutputHeadResponse]], list[pb.GetOutputHeadResponse]] = list
    break_off_after: int | None = None
    calls: list[str] = field(default_factory=list)
    requests: list[LogitsRequest] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    def _enter(self, name: str, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        self.metadata = {key: str(value) for key, value in context.invocation_metadata()}
        if self.faults:
            self.faults.pop(0)(context)

    def _payloads(self, message: pb.LogitsRequest, context: grpc.ServicerContext) -> list[bytes]:
        request = request_from_proto(message)
        self.requests.append(request)
        try:
            request.check(self.description)
        except TeacherError as error:
            fail(error)(context)
        n = request.effective_vocabulary_size(VOCABULARY_SIZE)
        payloads = []
        for sequence in request.sequences:
            ids = [sequence.token_ids[index] for index in sequence.position_indices()]
            payload = encode_logits(
                [TABLE[ids]],
                request.encoding,
                sequence=sequence,
                temperature=request.temperature,
                vocabulary_size=n,
            )
            payloads.append(encode_payload(payload))
        return self.alter(payloads)

    def GetTeacher(  # noqa: N802  # the contract's name
        self, request: pb.GetTeacherRequest, context: grpc.ServicerContext
    ) -> pb.GetTeacherResponse:
        self._enter("GetTeacher", context)
        return description_to_proto(self.description, include_tokens=request.include_tokens)

    def GetOutputHead(  # noqa: N802  # the contract's name
        self, request: pb.GetOutputHeadRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GetOutputHeadResponse]:
        self._enter("GetOutputHead", context)
        value_type: ValueType = "bfloat16" if request.value_type == pb.VALUE_TYPE_BFLOAT16 else "float32"
        data = b"".join(encode_output_head(HEAD, value_type))
        parts = [
            pb.GetOutputHeadResponse(
                offset=offset, total_bytes=len(data), data=chunk, fingerprint=self.description.fingerprint
            )
            for offset, chunk in split([data], 1000)
        ]
        yield from self.alter_head(parts)

    def ComputeLogits(  # noqa: N802  # the contract's name
        self, request: pb.ComputeLogitsRequest, context: grpc.ServicerContext
    ) -> pb.ComputeLogitsResponse:
        self._enter("ComputeLogits", context)
        return pb.ComputeLogitsResponse(
            payloads=self._payloads(request.request, context),
            fingerprint=self.description.fingerprint,
            timing=pb.Timing(queue_seconds=1, compute_seconds=2, encode_seconds=3),
            cache_hits=1,
        )

    def StreamLogits(  # noqa: N802  # the contract's name
        self, request: pb.StreamLogitsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamLogitsResponse]:
        self._enter("StreamLogits", context)
        payloads = self._payloads(request.request, context)
        sizes = [len(payload) for payload in payloads]
        header = pb.StreamHeader(payload_bytes=sizes, fingerprint=self.description.fingerprint)
        parts = [pb.StreamLogitsResponse(header=header)]
        for offset, data in split(payloads):
            parts.append(pb.StreamLogitsResponse(chunk=pb.StreamChunk(offset=offset, data=data)))
        parts.append(pb.StreamLogitsResponse(trailer=pb.StreamTrailer(cache_hits=1)))
        for index, part in enumerate(self.alter_stream(parts)):
            if index == self.break_off_after:
                self.break_off_after = None
                fail(TeacherUnavailableError("draining"))(context)
            yield part


@contextmanager
def serving(servicer: TableServicer, *options: tuple[str, int]) -> Iterator[str]:
    """Serve it on a free port of loopback; yields the address."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0), *options])
        rpc.add_TeacherServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def fail(error: TeacherError) -> Fault:
    """End a call as the service does when it raises `error`."""

    def fault(context: grpc.ServicerContext) -> None:
        status = status_of(error)
        context.set_trailing_metadata(status.trailing_metadata)
        context.abort(status.code, status.message)

    return fault


def end(code: grpc.StatusCode, details: str = "why") -> Fault:
    """End a call with a bare status, as a proxy might."""
    return lambda context: context.abort(code, details)


class Ask(Protocol):
    """Either client, waited for."""

    def __call__(self, request: LogitsRequest, **options: Any) -> Answer: ...


def about(*rows: tuple[int, ...], encoding: Encoding | None = None, **fields: Any) -> LogitsRequest:
    return LogitsRequest(tuple(Sequence(ids, (), All()) for ids in rows), encoding or Dense(), **fields)


SMALL = about((1, 2, 3))
# 6,000 positions of 200 bytes: more than a message, and more than one chunk.
LARGE = about(tuple(index % VOCABULARY_SIZE for index in range(6000)))
