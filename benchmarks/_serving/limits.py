"""What a service over gRPC, HTTP or TCP cannot undercut: ready bytes, sent by nothing but the transport.

    python -m benchmarks._serving.limits serve
    python -m benchmarks._serving.limits load ADDRESSES SETTING [DOOR]

The door `grpc` is a generic handler of grpc.aio that answers in one message, `grpc, chunks` one that streams the answer
in parts of 1 MiB, and `tcp` a socket to which a thread writes it. All their answers are made before the first request.
`grpc, checked` and `http, checked` do beside their transport what no answer of ours can be without, and nothing else:
rows looked up when they are asked for, a checksum on both sides, and memory of the caller's own. That of HTTP is a
protocol of asyncio on uvloop with httptools, in one process like the service, asked through the connections of the
client.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import xxhash

from benchmarks._serving.bare_http import BareHttp
from benchmarks.peers.loading import PATIENCE_SECONDS, Ask, load, load_async
from benchmarks.peers.speaking import announce, speak
from benchmarks.peers.table import QUESTIONS, SETTINGS, Floats, Ids, Setting, look_up, question, table
from stillhouse.chunks import CHUNK_BYTES
from stillhouse.http_address import HttpAddress
from stillhouse.http_connection import Connection
from teacher_service import event_loop
from teacher_service.freed_memory import keep_freed_memory

WHOLE, CHUNKS, CHECKED = "/limits/Whole", "/limits/Chunks", "/limits/Checked"
_DIGEST_BYTES = 8
_UNBOUNDED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_MOST_REQUEST_BYTES = 4096


class _Ready(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic to its stubs alone
    """Answers what a request's bytes name."""

    def __init__(self, logits: Floats, answers: dict[bytes, bytes]) -> None:
        self._logits = logits
        self._answers = answers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""
        once: Any = grpc.unary_unary_rpc_method_handler  # typed for the threaded server alone
        often: Any = grpc.unary_stream_rpc_method_handler
        handlers = {WHOLE: once(self._whole), CHUNKS: often(self._chunks), CHECKED: once(self._checked)}
        return handlers[handler_call_details.method]

    async def _whole(self, request: bytes, context: object) -> bytes:
        del context
        return self._answers[request]

    async def _checked(self, request: bytes, context: object) -> bytes:
        del context
        rows = look_up(self._logits, np.frombuffer(request, np.int32)).data.cast("B")
        return b"".join((xxhash.xxh3_64_digest(rows), rows))

    async def _chunks(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        del context
        answer = self._answers[request]
        for start in range(0, len(answer), CHUNK_BYTES):
            yield answer[start : start + CHUNK_BYTES]


class _Http(BareHttp):
    """Answers each body by the rows that its ids name."""

    def __init__(self, logits: Floats) -> None:
        self._logits = logits

    def take(self, body: bytes) -> None:
        """Answer."""
        rows = look_up(self._logits, np.frombuffer(body, np.int32)).data.cast("B")
        length = _DIGEST_BYTES + len(rows)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n" % length
        self.transport.writelines([head + xxhash.xxh3_64_digest(rows), rows])


def serve() -> None:
    """Serve until killed."""
    keep_freed_memory()  # as the service does
    logits = table()
    asked = [question(setting, number) for setting in SETTINGS.values() for number in range(QUESTIONS)]
    answers = {ids.tobytes(): look_up(logits, ids).tobytes() for ids in asked}
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listening, answers), daemon=True).start()
    http = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: event_loop.run(_serve_http(http, logits)), daemon=True).start()
    tcp_address, http_address = (f"127.0.0.1:{one.getsockname()[1]}" for one in (listening, http))
    asyncio.run(_serve(tcp_address, http_address, _Ready(logits, answers)))


async def _serve_http(listening: socket.socket, logits: Floats) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Http(logits), sock=listening)
    await server.serve_forever()


async def _serve(tcp: str, http: str, ready: _Ready) -> None:
    server = grpc.aio.server(options=_UNBOUNDED)
    server.add_generic_rpc_handlers((ready,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    announce({"grpc": address, "grpc, chunks": address, "grpc, checked": address, "tcp": tcp, "http, checked": http})
    await asyncio.Event().wait()


def _accept(listening: socket.socket, answers: dict[bytes, bytes]) -> None:
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=_answer, args=(connection, answers), daemon=True).start()


def _answer(connection: socket.socket, answers: dict[bytes, bytes]) -> None:
    with connection:
        # A request is less than a packet, and nobody sends a second before the answer to the first.
        while request := connection.recv(_MOST_REQUEST_BYTES):
            connection.sendall(answers[request])


def open_tcp(address: str, num_bytes: int) -> Ask:
    """Open a connection that reads each answer into the same memory."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    view = memoryview(bytearray(num_bytes))

    def ask(ids: Ids) -> object:
        connection.sendall(ids.tobytes())
        got = 0
        while got < num_bytes:
            count = connection.recv_into(view[got:])
            if not count:
                raise ConnectionError("the server has gone")
            got += count
        return view

    return ask


def open_http(address: str) -> Ask:
    """Open a connection that reads each answer into memory of its own, and checks it."""
    connection = Connection(HttpAddress.of(f"http://{address}"), None)

    def ask(ids: Ids) -> object:
        response = connection.ask("POST", "/", ids.tobytes(), {}, time.monotonic() + PATIENCE_SECONDS)
        digest = bytearray(_DIGEST_BYTES)
        rows = np.empty((response.num_bytes or 0) - _DIGEST_BYTES, np.uint8).data
        response.fill([memoryview(digest), rows])
        if xxhash.xxh3_64_digest(rows) != digest:
            raise ValueError("an answer differs from its checksum")
        return rows

    return ask


async def load_grpc(address: str, door: str, setting: Setting) -> None:
    """Ask over one channel, as a user of grpc.aio does."""
    async with grpc.aio.insecure_channel(address, _UNBOUNDED) as channel:
        whole: Any = channel.unary_unary(WHOLE, None, None)
        chunks: Any = channel.unary_stream(CHUNKS, None, None)
        checked: Any = channel.unary_unary(CHECKED, None, None)

        async def ask(ids: Ids) -> object:
            return await whole(ids.tobytes())

        async def ask_chunks(ids: Ids) -> object:
            return b"".join([chunk async for chunk in chunks(ids.tobytes())])

        async def ask_checked(ids: Ids) -> object:
            message = memoryview(await checked(ids.tobytes()))
            if xxhash.xxh3_64_digest(message[_DIGEST_BYTES:]) != message[:_DIGEST_BYTES]:
                raise ValueError("an answer differs from its checksum")
            return np.frombuffer(message, np.float32, offset=_DIGEST_BYTES).copy().data.cast("B")

        asks = {"grpc": ask, "grpc, chunks": ask_chunks, "grpc, checked": ask_checked}
        await load_async(setting, asks[door])


def _load(address: str, door: str, setting: Setting) -> None:
    if door == "tcp":
        num_bytes = look_up(table(), question(setting, 0)).nbytes
        load(setting, lambda: open_tcp(address, num_bytes))
    elif door == "http, checked":
        load(setting, lambda: open_http(address))
    else:
        asyncio.run(load_grpc(address, door, setting))


if __name__ == "__main__":
    speak(serve, _load)
