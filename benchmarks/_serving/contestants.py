"""Servers and load clients in processes of their own, each told when it is its turn.

What each of them says on its lines is in `peers`. A peer is left out where its environment is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.peers.loading import PATIENCE_SECONDS
from stillhouse.processes import die_with_parent

_REPOSITORY = Path(__file__).parents[2]
_ENVIRONMENTS = _REPOSITORY / ".venv-peers"
_TURN_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Contestant:
    """One door of one server. `environment` names the peer's, None is this one; `over_grpc` is what the door speaks."""

    name: str
    module: str
    door: str
    environment: str | None = None
    over_grpc: bool = False

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return Path(sys.executable) if self.environment is None else _ENVIRONMENTS / self.environment / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn took, in seconds: its own, and of the processor for the server and for the load client."""

    seconds: float
    server_seconds: float
    client_seconds: float


@dataclass(slots=True)
class Contest:
    """The servers that run, and the clients of each setting."""

    folder: Path
    addresses: dict[str, dict[str, str]] = field(default_factory=dict)
    _servers: dict[str, _Process] = field(default_factory=dict)
    _processes: list[_Process] = field(default_factory=list)

    def start_server(self, contestant: Contestant) -> None:
        """Start the server of a contestant, unless it runs."""
        if contestant.module not in self._servers:
            server = self._start(contestant, "serve")
            self.addresses[contestant.module] = server.line(PATIENCE_SECONDS)
            # One that did not start is started anew for its next door.
            self._servers[contestant.module] = server

    def start_client(self, contestant: Contestant, setting: str) -> Client:
        """Start a load client, and wait until it has had a right answer."""
        addresses = json.dumps(self.addresses[contestant.module])
        client = self._start(contestant, "load", addresses, setting, contestant.door)
        client.line(PATIENCE_SECONDS)
        return Client(client, self._servers[contestant.module])

    def close(self) -> None:
        """End all of them."""
        for process in reversed(self._processes):
            process.close()

    def _start(self, contestant: Contestant, *arguments: str) -> _Process:
        log = self.folder / f"{len(self._processes)}-{contestant.module}-{arguments[0]}.log"
        process = _Process([str(contestant.python), "-m", contestant.module, *arguments], log)
        self._processes.append(process)
        return process


@dataclass(frozen=True, slots=True)
class Client:
    """A load client, and the server that it asks."""

    _process: _Process
    _server: _Process

    def go(self, count: int) -> Turn:
        """Ask so often."""
        server, client = self._server.processor_seconds(), self._process.processor_seconds()
        seconds = self._process.go(count)
        return Turn(seconds, self._server.processor_seconds() - server, self._process.processor_seconds() - client)


class _Process:
    """A process that speaks in lines of JSON; what else it says goes to its log."""

    def __init__(self, argv: list[str], log: Path) -> None:
        self._log = log
        self._name = " ".join(argv[2:4])
        # PyTriton's stub looks for this interpreter's library.
        environment = os.environ | {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
        with log.open("wb") as errors:
            self._popen = subprocess.Popen(
                argv, cwd=_REPOSITORY, env=environment, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no lock, no allocation
            )  # fmt: skip

    def go(self, count: int) -> float:
        """Have a client ask so often; return the seconds that it took."""
        stdin: IO[str] | None = self._popen.stdin
        assert stdin is not None
        stdin.write(f"go {count}\n")
        stdin.flush()
        return float(self.line(_TURN_SECONDS)["seconds"])

    def processor_seconds(self) -> float:
        """Return what it and its children have had of the processor; 0 where it has gone."""
        total = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._popen.pid)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    total += times.user + times.system
        return total

    def line(self, seconds: float) -> dict[str, Any]:
        """Return what the process says next."""
        stdout: IO[str] | None = self._popen.stdout
        assert stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while selector.select(max(deadline - time.monotonic(), 0)):
                line = stdout.readline()
                if line.startswith("{"):
                    said: dict[str, Any] = json.loads(line)
                    return said
                if not line:
                    break
        raise RuntimeError(f"{self._name} says nothing more:\n{self._log.read_text(errors='replace')[-2000:]}")

    def close(self) -> None:
        """End it and its children, which have its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, 9)
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextmanager
def contest() -> Iterator[Contest]:
    """Run servers and clients until the end of the context."""
    with tempfile.TemporaryDirectory() as name:
        running = Contest(Path(name))
        try:
            yield running
        finally:
            running.close()
