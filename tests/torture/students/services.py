"""What workers need from outside, in processes that can be killed and brought back where they were.

A teacher in deterministic mode, the Valkey that it caches in, and a lighthouse. Knows nothing of workers.
"""

from __future__ import annotations

import signal
import sys
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path

from tests.torture.service_process import OwnProcess, RedisProcess, ServiceProcess, free_port, serving, wait_until

START_SECONDS = 60.0


class Service(ABC):
    """Can be killed, and started again at the same address."""

    is_up = False

    def start(self) -> None:
        """Start it; it answers when this returns."""
        self._start()
        self.is_up = True

    def kill(self) -> None:
        """SIGKILL it, and see that it is gone."""
        self._kill()
        self.is_up = False

    def restore(self) -> None:
        """Start it if a test has left it dead."""
        if not self.is_up:
            self.start()

    @abstractmethod
    def stop(self) -> None:
        """End it."""

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _kill(self) -> None: ...


class Teacher(Service):
    """The real service at ports of its own. `model` may be changed while it is down."""

    def __init__(self, folder: Path, model: Path, redis_url: str) -> None:
        self._folder = folder
        self._redis_url = redis_url
        self.model = model
        grpc_port, http_port = free_port(), free_port()
        self._ports = ("--grpc-port", str(grpc_port), "--http-port", str(http_port))
        self.address = f"127.0.0.1:{grpc_port}"
        self._running = ExitStack()
        self._service: ServiceProcess | None = None

    def _start(self) -> None:
        self._running.close()
        flags = ("--mode", "deterministic", "--dtype", "float32", *self._ports)
        context = serving(self._folder, self.model, *flags, redis_url=self._redis_url)
        self._service = self._running.enter_context(context)

    def _kill(self) -> None:
        assert self._service is not None
        self._service.process.signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it."""
        self._running.close()


class Valkey(Service):
    """The Valkey of a teacher; empty whenever it is started."""

    def __init__(self, folder: Path) -> None:
        self._process = RedisProcess(folder)
        self.url = self._process.url

    def empty(self) -> None:
        """Forget all answers."""
        self._process.client.flushall()

    def _start(self) -> None:
        self._process.start()

    def _kill(self) -> None:
        self._process.signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it."""
        self._process.stop()


class LighthouseProcess(Service):
    """`student lighthouse` at a port of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._process: OwnProcess | None = None

    def _start(self) -> None:
        ready = self._folder / "lighthouse.address"
        ready.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "student_worker", "lighthouse", "--port", str(self._port)]
        self._process = OwnProcess([*argv, "--ready-file", str(ready)], self._folder / "lighthouse.log")
        wait_until(ready.exists, START_SECONDS, "the start of the lighthouse")

    def _kill(self) -> None:
        assert self._process is not None
        self._process.signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()
