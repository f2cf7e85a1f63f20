"""A real teacher in a process of its own, with a Valkey of its own, and a relay that counts what passes to it."""

from __future__ import annotations

import json
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from stillhouse.processes import Child
from teacher_service.embedded_redis import EmbeddedRedis

START_SECONDS = 180.0
CACHE_BYTES = 4 * 2**30
_READ_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class RealService:
    """Where it listens, over gRPC and over HTTP, and the Redis in which it remembers."""

    address: str
    http_address: str
    redis: Redis
    redis_url: str

    def forget(self) -> None:
        """Empty the Redis, and wait until its memory is given back: by default that goes on behind the answer."""
        call: Any = self.redis.execute_command
        call("FLUSHALL", "SYNC")

    def remembered_bytes(self) -> int:
        """Return the memory of what the Redis remembers, keys and its own structures included, connections not."""
        told = self.redis.info("memory")
        return int(told["used_memory"]) - int(told["mem_clients_normal"])


@contextmanager
def real_service(*flags: str) -> Iterator[RealService]:
    """Serve on a free port of the loopback until the end of the context."""
    with (
        EmbeddedRedis(CACHE_BYTES, "noeviction") as redis,
        closing(Redis.from_url(redis.url)) as client,
        tempfile.TemporaryDirectory() as name,
    ):
        ready, log = Path(name) / "ready.json", Path(name) / "teacher.log"
        argv = [sys.executable, "-m", "stillhouse", "teacher", "serve", *flags]
        argv += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
        with Child("teacher", argv, log, {"TEACHER_REDIS_URL": redis.url}) as teacher:
            deadline = time.monotonic() + START_SECONDS
            while not ready.exists():
                if teacher.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the teacher does not start:\n{teacher.tail()}")
                time.sleep(0.05)
            addresses = json.loads(ready.read_text(encoding="utf-8"))
            yield RealService(addresses["grpc"], addresses["http"], client, redis.url)


class CountingRelay:
    """Passes one connection after another on, byte for byte, and counts both ways: what a network would carry.

    What TCP and IP add to each packet is not counted.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.sent = 0
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where to connect instead."""
        return f"127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        """Take no more connections; those that stand end with their callers."""
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(caller,), daemon=True).start()

    def _pass(self, caller: socket.socket) -> None:
        with caller, socket.create_connection(self._target) as service, selectors.DefaultSelector() as selector:
            selector.register(caller, selectors.EVENT_READ, service)
            selector.register(service, selectors.EVENT_READ, caller)
            while True:
                for key, _ in selector.select():
                    source = caller if key.fileobj is caller else service
                    data = source.recv(_READ_BYTES)
                    if not data:
                        return
                    key.data.sendall(data)
                    if source is caller:
                        self.sent += len(data)
                    else:
                        self.received += len(data)
