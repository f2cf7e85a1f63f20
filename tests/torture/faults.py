"""What is done to a service and to its Redis while clients ask.

`python -m tests.torture.faults ADDRESS` is a client that reads large answers until somebody kills it.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import grpc

from stillhouse.encodings import Dense
from stillhouse.messages import request_to_proto
from stillhouse.request import All, LogitsRequest
from stillhouse.request import Sequence as Asked
from stillhouse.teacher.v1 import teacher_service_pb2 as pb
from stillhouse.teacher.v1 import teacher_service_pb2_grpc as pb_grpc
from tests.torture.doors import ARROW, body_of
from tests.torture.reference import VOCABULARY_SIZE
from tests.torture.service_process import RedisProcess

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_START_SECONDS = 60.0
_BETWEEN_PARTS_SECONDS = 0.05

# Without the probe, what gRPC takes over for an application that does not read never grows.
_NO_PROBE = ("grpc.http2.bdp_probe", 0)

LARGE_SEQUENCES = 16
LARGE_TOKENS = 256
LARGE_ANSWER_BYTES = LARGE_SEQUENCES * LARGE_TOKENS * VOCABULARY_SIZE * 4
"""8 MiB: more than what gRPC and the kernel take over of an answer that nobody reads."""


def large_request(seed: int) -> LogitsRequest:
    """Return one whose answer is streamed in many chunks."""
    draw = random.Random(seed)
    rows = (tuple(draw.randrange(VOCABULARY_SIZE) for _ in range(LARGE_TOKENS)) for _ in range(LARGE_SEQUENCES))
    return LogitsRequest(tuple(Asked(row, (), All()) for row in rows), Dense(), cache_mode="bypass")


def poison(redis: RedisProcess, draw: random.Random) -> int:
    """Put random bytes in the place of every value: whole, cut short, or with one bit turned; return how many."""
    values = redis.values()
    for key, value in values.items():
        damaged = bytearray(value)
        match draw.randrange(3):
            case 0:
                damaged = bytearray(draw.randbytes(len(value)))
            case 1:
                del damaged[draw.randrange(len(value)) :]
            case _:
                damaged[draw.randrange(len(value))] ^= 1 << draw.randrange(8)
        redis.client.set(key, bytes(damaged))
    return len(values)


def swap(redis: RedisProcess) -> int:
    """Give every key the value of another of the same length, each a right answer to another question."""
    values, groups = redis.values(), dict[int, list[bytes]]()
    for key, value in values.items():
        groups.setdefault(len(value), []).append(key)
    swapped = 0
    for keys in groups.values():
        for key, other in zip(keys, [*keys[1:], keys[0]], strict=True):
            redis.client.set(key, values[other])
            swapped += values[key] != values[other]
    return swapped


@asynccontextmanager
async def nonsense_on(port: int, answers: Sequence[bytes]) -> AsyncIterator[list[bytes]]:
    """Answer whatever is said on a port with these bytes, one after the other; yields what was said."""
    heard: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(answers[len(heard) % len(answers)])
                heard.append(data)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        yield heard
    # Those that the service still holds open: none may outlive the test's loop.
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _garbage(draw: random.Random) -> bytes:
    noise = draw.randbytes(draw.randint(1, 4096))
    frame = len(noise).to_bytes(3) + bytes((draw.randrange(12), draw.randrange(256))) + draw.randbytes(4) + noise
    return draw.choice(
        (
            noise,
            _HTTP2_PREFACE + noise,
            _HTTP2_PREFACE + b"\0\0\0\4\0\0\0\0\0" + frame,
            b"POST /v1/logits HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\n" + noise,
            b"POST /v1/logits HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
            + noise,
            b"GET /" + noise.replace(b"\n", b"") + b" HTTP/1.1\r\n" * draw.randint(1, 50),
        )
    )


def send_garbage(address: str, draw: random.Random, seconds: float) -> int:
    """Open connections and send what no client would; return how many the service took up."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    deadline, sent = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.settimeout(0.02)
            connection.sendall(_garbage(draw))
            sent += 1
            with suppress(TimeoutError):
                connection.recv(65536)
    return sent


@contextmanager
def idle_connections(address: str, count: int) -> Iterator[list[socket.socket]]:
    """Hold connections open on which nothing is ever said."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(count)]


@asynccontextmanager
async def never_reading(address: str, count: int) -> AsyncIterator[None]:
    """Hold streams open of which the first message is read, and nothing more."""
    async with AsyncChannels(address, count) as channels:

        async def begin(number: int) -> object:
            stub = pb_grpc.TeacherServiceStub(channels[number])
            call = stub.StreamLogits(pb.StreamLogitsRequest(request=request_to_proto(large_request(number))))
            await call.read()
            return call

        calls = await asyncio.gather(*map(begin, range(count)))
        yield
        del calls


@contextmanager
def never_reading_over_http(address: str, count: int) -> Iterator[None]:
    """Hold connections open on which a large answer was asked for, and of which nothing is read."""
    with idle_connections(address, count) as connections:
        for number, connection in enumerate(connections):
            body = json.dumps(body_of(large_request(number))).encode()
            head = f"POST /v1/logits HTTP/1.1\r\nhost: a\r\naccept: {ARROW}\r\ncontent-length: {len(body)}\r\n"
            connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        yield


class AsyncChannels:
    """Channels with a connection each: gRPC would let them share one."""

    def __init__(self, address: str, count: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), _NO_PROBE]
        self._channels = [grpc.aio.insecure_channel(address, options) for _ in range(count)]

    async def __aenter__(self) -> list[grpc.aio.Channel]:
        return self._channels

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close(None)


@contextmanager
def readers(address: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Run clients that read large answers, each in a process of its own; they have begun to read by now."""
    argv = [sys.executable, "-m", "tests.torture.faults", address]
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "reading\n"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _read_for_ever(address: str) -> None:
    """Read streams one after the other, slowly, so that each is under way nearly always; say so in the first."""
    with grpc.insecure_channel(address, [_NO_PROBE]) as channel:
        stub = pb_grpc.TeacherServiceStub(channel)
        message = pb.StreamLogitsRequest(request=request_to_proto(large_request(0)))
        is_first = True
        while True:
            for part in stub.StreamLogits(message, timeout=_START_SECONDS):
                if is_first and part.HasField("chunk"):
                    print("reading", flush=True)  # noqa: T201 - whoever started it waits for this
                    is_first = False
                time.sleep(_BETWEEN_PARTS_SECONDS)


if __name__ == "__main__":
    _read_for_ever(sys.argv[1])
