"""The lighthouse: the small server where the workers of a run meet before every step.

It is torchft's, and native; its library is loaded by itself, because importing torchft imports torch, which takes
seconds and hundreds of megabytes that a rendezvous doesn't need. It knows no authentication: bind it to the network
that the workers share, and to no other.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, ModuleType
from typing import Self

from stillhouse.errors import ConfigurationError

DEFAULT_PORT = 29510

JOIN_TIMEOUT_MS = 3_000
"""How long a quorum waits for a worker that is alive and has not asked for it yet."""
HEARTBEAT_TIMEOUT_MS = 2_000
"""After this silence a worker counts as dead; its peers' next step comes that much later."""
QUORUM_TICK_MS = 50
"""How often the lighthouse looks whether a quorum is complete."""


def _native() -> ModuleType:
    """Load torchft's native library without torchft.

    Raises:
        ConfigurationError: If torchft is not installed.
    """
    package = importlib.util.find_spec("torchft")
    folders = package.submodule_search_locations if package is not None else None
    library = next((path for folder in folders or () for path in Path(folder).glob("_torchft*.so")), None)
    if library is None:
        raise ConfigurationError("torchft is not installed; several workers need it: pip install 'stillhouse[student]'")
    # Read when the library is loaded; at its default level it writes several lines for every step of every worker.
    os.environ.setdefault("RUST_LOG", "warn")
    loader = importlib.machinery.ExtensionFileLoader("_torchft", str(library))
    spec = importlib.util.spec_from_loader("_torchft", loader)
    if spec is None:
        raise ConfigurationError(f"{library} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class Lighthouse:
    """A running lighthouse; a context manager that ends it.

    Args:
        host: the address to bind to.
        port: 0 takes a free one.
        heartbeat_timeout_ms: after this silence a worker counts as dead.

    Raises:
        ConfigurationError: If the address cannot be bound, or torchft is not installed.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, heartbeat_timeout_ms: int = HEARTBEAT_TIMEOUT_MS
    ) -> None:
        shown = f"[{host}]" if ":" in host else host
        try:
            self._server = _native().LighthouseServer(
                bind=f"{shown}:{port}",
                min_replicas=1,
                join_timeout_ms=JOIN_TIMEOUT_MS,
                quorum_tick_ms=QUORUM_TICK_MS,
                heartbeat_timeout_ms=heartbeat_timeout_ms,
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise ConfigurationError(f"the lighthouse cannot bind to {shown}:{port}: {error}") from error
        self.port = int(self._server.address().rpartition(":")[2])
        self.address = f"{shown}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()


def serve(host: str, port: int = DEFAULT_PORT, *, ready_file: Path | None = None) -> int:
    """Run a lighthouse until SIGTERM or SIGINT; write its address to standard output, and to `ready_file` if given.

    Returns:
        The exit code: 143, as the end of a lighthouse is always an interruption.

    Raises:
        ConfigurationError: If the address cannot be bound, or torchft is not installed.
    """
    stop = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    with Lighthouse(host, port) as lighthouse:
        sys.stdout.write(f"lighthouse at {lighthouse.address}\n")
        sys.stdout.flush()
        if ready_file is not None:
            aside = ready_file.with_name(f"{ready_file.name}.aside")
            aside.write_text(lighthouse.address, encoding="utf-8")
            aside.replace(ready_file)
        stop.wait()
    return 128 + signal.SIGTERM
