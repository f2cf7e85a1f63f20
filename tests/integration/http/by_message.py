"""Asks the HTTP door by the contract's messages: through our clients, and as bytes on a socket."""

from __future__ import annotations

from typing import Any

from stillhouse.client import AsyncTeacherClient
from stillhouse.encodings import Dense, Encoding
from stillhouse.messages import request_to_proto
from stillhouse.request import All, LogitsRequest, Sequence
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service.service import TeacherService

MESSAGE = "application/protobuf"
SENT = {"content-type": MESSAGE}


def about(*lengths: int, encoding: Encoding | None = None, **more: Any) -> LogitsRequest:
    rows = (tuple((index * 7 + place) % 60 for place in range(length)) for index, length in enumerate(lengths))
    return LogitsRequest(tuple(Sequence(row, (), All()) for row in rows), encoding or Dense(), **more)


def body(request: LogitsRequest) -> bytes:
    return pb.ComputeLogitsRequest(request=request_to_proto(request)).SerializeToString()


def raw(kind: str, data: bytes) -> bytes:
    head = f"POST /v1/logits HTTP/1.1\r\nhost: t\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def http_client(service: TeacherService, **options: Any) -> AsyncTeacherClient:
    return AsyncTeacherClient(f"http://127.0.0.1:{service.http_port}", **{"max_attempts": 1, **options})


def grpc_client(service: TeacherService, **options: Any) -> AsyncTeacherClient:
    return AsyncTeacherClient(f"127.0.0.1:{service.grpc_port}", **{"max_attempts": 1, **options})
