"""What a Python service with a model cannot undercut, whatever its transport: only what an answer is made of.

    python -m benchmarks._serving.model_thread serve
    python -m benchmarks._serving.model_thread load ADDRESSES SETTING [DOOR]

The contract's own messages over HTTP, on asyncio, uvloop and httptools. A request is read by protobuf and queued for
the thread in which a model would run, with others as far as they fit; there the rows are looked up, each is seen to be
finite and becomes a payload with its checksum; the event loop sends them. The client builds requests and decodes
payloads to tensors as Stillhouse's own does. Nothing else: nobody is authorised, no request validated, bounded,
counted, noted, looked up in a cache or joined with another, and nothing may fail, be cancelled or be tried again.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from benchmarks._serving.bare_http import BareHttp
from benchmarks._serving.table_service import request_about
from benchmarks.peers.loading import PATIENCE_SECONDS, Ask, load
from benchmarks.peers.speaking import announce, speak
from benchmarks.peers.table import SETTINGS, Ids, Setting, table
from stillhouse.answer_messages import RawAnswer, answer_parts
from stillhouse.answer_reading import receive_answer
from stillhouse.codec import Draft, decode_payloads
from stillhouse.http_address import HttpAddress
from stillhouse.http_connection import Connection
from stillhouse.messages import request_to_proto
from stillhouse.payload_header import Header, Kind
from stillhouse.payloads import DenseLogits
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from teacher_service import event_loop
from teacher_service.freed_memory import keep_freed_memory
from teacher_service.garbage import look_for_garbage_seldom
from teacher_service.sending import Sender

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/protobuf\r\ncontent-length: %d\r\n\r\n"
# As the service of `table_service` batches.
_BATCH_SEQUENCES = SETTINGS["large"].sequences

Asked = tuple["_Http", list[int], int]
"""Whom to answer, about which ids, and how much of each row."""


class _Http(BareHttp):
    """One connection."""

    def __init__(self, waiting: queue.SimpleQueue[Asked]) -> None:
        self._waiting = waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._sender = Sender(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._sender.close()

    def take(self, body: bytes) -> None:
        """Queue the request."""
        request = pb.ComputeLogitsRequest.FromString(body).request
        self._waiting.put((self, [one.token_ids[0] for one in request.sequences], request.vocabulary_size))

    def answer(self, payloads: SequenceOf[memoryview]) -> None:
        """Send."""
        timing = pb.Timing(queue_seconds=1.0, compute_seconds=1.0, encode_seconds=1.0)
        parts = answer_parts(RawAnswer(payloads, "0" * 32, timing, 0))
        self._sender.write([_HEAD % sum(map(len, parts)), *parts])


def _compute(waiting: queue.SimpleQueue[Asked], logits: Tensor, loop: asyncio.AbstractEventLoop) -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        while True:
            batch = [waiting.get()]
            while sum(len(ids) for _, ids, _ in batch) < _BATCH_SEQUENCES and not waiting.empty():
                batch.append(waiting.get())
            rows = logits.index_select(0, torch.tensor([one for _, ids, _ in batch for one in ids]))
            answers, at = [], 0
            for caller, ids, width in batch:
                answers.append((caller, [_payload(rows[at + index, :width]) for index in range(len(ids))]))
                at += len(ids)
            loop.call_soon_threadsafe(_send, answers)


def _payload(row: Tensor) -> memoryview:
    draft = Draft.of(Header(Kind.DENSE, "float32", 1, len(row)))
    assert isinstance(draft.payload, DenseLogits)
    assert torch.isfinite(row.amax())
    draft.payload.logits.copy_(row)
    return draft.seal()


def _send(answers: SequenceOf[tuple[_Http, list[memoryview]]]) -> None:
    for caller, payloads in answers:
        caller.answer(payloads)


def serve() -> None:
    """Serve until killed."""
    keep_freed_memory()  # as the service does, and the next
    look_for_garbage_seldom()
    event_loop.run(_serve(torch.from_numpy(table())))


async def _serve(logits: Tensor) -> None:
    waiting: queue.SimpleQueue[Asked] = queue.SimpleQueue()
    loop = asyncio.get_running_loop()
    threading.Thread(target=_compute, args=(waiting, logits, loop), daemon=True).start()
    listening = socket.create_server(("127.0.0.1", 0))
    server = await loop.create_server(lambda: _Http(waiting), sock=listening)
    announce({"http": f"http://127.0.0.1:{listening.getsockname()[1]}"})
    await server.serve_forever()


def open_door(address: str) -> Ask:
    """Open a connection that decodes each answer to tensors."""
    connection = Connection(HttpAddress.of(address), None)

    def ask(ids: Ids) -> object:
        request = request_about(ids, "bypass")
        expected = [Header(Kind.DENSE, "float32", 1, request.vocabulary_size)] * len(ids)
        body = pb.ComputeLogitsRequest(request=request_to_proto(request)).SerializeToString()
        response = connection.ask("POST", "/", body, {}, time.monotonic() + PATIENCE_SECONDS)
        payloads = decode_payloads(receive_answer(response, expected).payloads)
        return [payload.logits.numpy() for payload in payloads if isinstance(payload, DenseLogits)]

    return ask


def _load(address: str, door: str, setting: Setting) -> None:
    del door
    load(setting, lambda: open_door(address))


if __name__ == "__main__":
    speak(serve, _load)
