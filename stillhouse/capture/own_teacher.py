"""A teacher service that is started for one capture, on loopback, and ended with it.

It is the ordinary `stillhouse teacher serve`, in a process of its own and in deterministic mode: the library reaches
the service by its command alone. Knows nothing of what is asked.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog

from stillhouse.errors import StillhouseError
from stillhouse.processes import Child

POLL_SECONDS = 0.05
STOP_GRACE_SECONDS = 20.0

SECONDS_BETWEEN_LINES = 30.0
"""How often a teacher that loads for long is told of."""

_CACHE_SETTINGS = ("TEACHER_CACHE", "TEACHER_REDIS_URL")

_DOORS = (
    "TEACHER_TOKENS", "TEACHER_TOKENS_FILE", "TEACHER_SCRAPE_TOKEN", "TEACHER_TLS_CERTIFICATE", "TEACHER_TLS_KEY",
    "TEACHER_TLS_CLIENT_CA",
)  # fmt: skip
"""What a service for others may have set in the environment: this one serves its parent alone."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OwnTeacher:
    """Where it listens, and what it asks for; `check` sees that it is still there."""

    address: str
    token: str
    _child: Child

    def check(self) -> None:
        """See that it runs.

        Raises:
            StillhouseError: it has ended; the message holds the end of its log.
        """
        if (status := self._child.poll()) is not None:
            raise StillhouseError(f"the teacher that was started ended with exit code {status}: {self._child.tail()}")


@contextmanager
def own_teacher(flags: Mapping[str, object]) -> Iterator[OwnTeacher]:
    """Start a teacher, wait until it is ready, and end it when the context ends.

    Args:
        flags: settings of `stillhouse teacher serve` by field; those that are None are left to it.

    Raises:
        StillhouseError: it ended instead of becoming ready; the message holds the end of its log.
    """
    with TemporaryDirectory(prefix="stillhouse-teacher-") as name:
        ready, token = Path(name) / "ready.json", secrets.token_hex(16)
        with Child("teacher", _argv(flags, ready), Path(name) / "teacher.log", _environment(token)) as child:
            teacher = OwnTeacher(_wait(ready, child), token, child)
            try:
                yield teacher
            finally:
                child.stop(STOP_GRACE_SECONDS)


def _argv(flags: Mapping[str, object], ready: Path) -> list[str]:
    argv = [sys.executable, "-m", "stillhouse", "teacher", "serve", "--mode", "deterministic", "--host", "127.0.0.1"]
    argv += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
    if not any(os.environ.get(name) for name in _CACHE_SETTINGS):
        argv += ["--cache", "off"]  # every sample is asked about once
    for field, value in flags.items():
        if value is not None:
            argv += [f"--{field.replace('_', '-')}", str(value)]
    return argv


def _environment(token: str) -> dict[str, str]:
    # An empty variable counts as one that is not set.
    return {**dict.fromkeys(_DOORS, ""), "TEACHER_TOKENS": token}


def _wait(ready: Path, child: Child) -> str:
    began = told = time.monotonic()
    while not ready.exists():
        if (status := child.poll()) is not None:
            raise StillhouseError(f"the teacher could not be started, exit code {status}: {child.tail(3)}")
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            _log.info("teacher_is_loading", seconds=round(told - began))
        time.sleep(POLL_SECONDS)
    address: str = json.loads(ready.read_text(encoding="utf-8"))["grpc"]
    return address
