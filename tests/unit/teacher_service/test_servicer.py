"""The servicer's handlers, which are written by hand, and the contract."""

from __future__ import annotations

from typing import Any, cast

import pytest

from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service.metrics import Metrics
from teacher_service.servicer import SERVICE_NAME, TeacherServicer

CONTRACT = pb.DESCRIPTOR.services_by_name["TeacherService"]


class HandlersOnly:
    """The part of a server that keeps handlers."""

    def __init__(self) -> None:
        self.handlers: tuple[Any, ...] = ()

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        self.handlers = handlers


class Call:
    """What a handler is looked up by."""

    invocation_metadata = ()

    def __init__(self, method: str) -> None:
        self.method = method


@pytest.mark.parametrize("method", list(CONTRACT.methods), ids=lambda method: method.name)
def test_every_call_of_the_contract_has_a_handler_of_its_kind(method: Any) -> None:
    server = HandlersOnly()
    servicer = TeacherServicer(cast("Any", None), Metrics(), 1)
    servicer.add_to(cast("Any", server))
    (handlers,) = server.handlers
    handler = handlers.service(Call(f"/{SERVICE_NAME}/{method.name}"))
    assert handler is not None
    assert (handler.request_streaming, handler.response_streaming) == (method.client_streaming, method.server_streaming)
    question = getattr(pb, method.input_type.name)()
    assert handler.request_deserializer(question.SerializeToString()) == question
