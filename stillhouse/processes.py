"""Child processes that never outlive their parent: started in a group of their own, ended gently, then by force.

Knows nothing of what the processes do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _load_prctl() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


# Loaded before any fork: between fork and exec only what needs no lock may run.
_LIBC = _load_prctl()


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask the kernel to send this process a signal when the thread that started it ends; for `preexec_fn`.

    So nothing is left behind when a parent is killed with no chance to clean up. Linux only; elsewhere a parent
    that dies by force leaves its children.
    """
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


class Child:
    """One child process in a session of its own, so that Ctrl-C reaches it only through its parent.

    Its output goes to `log_path`; `tail` shows the end of it when the child has failed.
    """

    def __init__(
        self, name: str, argv: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no lock, no allocation
            )

    @property
    def pid(self) -> int:
        """The process id, which is also the process group's."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs; negative for a signal."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to the child alone; nothing happens when it has ended."""
        if self.poll() is None:
            self._process.send_signal(number)

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for the end at most so long; return the exit status, or None."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_seconds: float) -> int:
        """End it: SIGTERM, and SIGKILL to its whole group once the grace has passed. Return the exit status."""
        self.signal(signal.SIGTERM)
        status = self.wait(grace_seconds)
        # Also after a clean exit: what the child itself left behind in its group goes with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._process.wait() if status is None else status

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of what it wrote."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(grace_seconds=10.0)
