"""A service that answers with bytes that are no messages at all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from stillhouse.client import AsyncTeacherClient, TeacherClient
from stillhouse.errors import CodecError
from stillhouse.messages import description_to_proto
from tests.integration.client.table_teacher import LARGE, OFFERS_HIDDEN, SMALL

GARBAGE = b"\xff\xff\xff\xff\xff\xff"


class Garbage(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic to its stubs alone
    """Answers every call but the named ones with garbage; counts the calls."""

    def __init__(self) -> None:
        self.spared: set[str] = set()
        self.calls = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        name = handler_call_details.method.rpartition("/")[2]
        self.calls += name not in self.spared
        answer = description_to_proto(OFFERS_HIDDEN).SerializeToString() if name in self.spared else GARBAGE
        if name in ("StreamLogits", "GetOutputHead"):
            return grpc.unary_stream_rpc_method_handler(lambda _, __: iter([answer]))
        return grpc.unary_unary_rpc_method_handler(lambda _, __: answer)


@pytest.fixture
def garbage() -> Garbage:
    return Garbage()


@pytest.fixture
def address(garbage: Garbage) -> Iterator[str]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[garbage])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_garbage_is_damage_for_every_call(garbage: Garbage, address: str) -> None:
    with TeacherClient(address) as client:
        with pytest.raises(CodecError):
            client.describe()
        garbage.spared = {"GetTeacher"}
        for ask in (lambda: client.answer(SMALL), lambda: client.answer(LARGE), client.output_head):
            garbage.calls = 0
            with pytest.raises(CodecError):
                ask()
            assert garbage.calls == 3


async def test_garbage_is_damage_for_every_call_of_asyncio(garbage: Garbage, address: str) -> None:
    async with AsyncTeacherClient(address) as client:
        with pytest.raises(CodecError):
            await client.describe()
        garbage.spared = {"GetTeacher"}
        for ask in (lambda: client.answer(SMALL), lambda: client.answer(LARGE), client.output_head):
            garbage.calls = 0
            with pytest.raises(CodecError):
                await ask()
            assert garbage.calls == 3
