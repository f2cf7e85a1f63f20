"""Advisory locks on files: whoever holds one is alive.

`flock` ends with the process, however it ends, so that nothing is left to tidy up; and it holds between containers that
mount the same folder of one host. Knows nothing of what is locked.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.errors import ConfigurationError

POLL_SECONDS = 0.001


class Lock:
    """A lock that is held until it is released, or until this process ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let the next one have it. The file stays: one that is removed could be locked twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def try_lock(path: Path) -> Lock | None:
    """Lock a file, made where it is missing; return None where somebody else holds it.

    Raises:
        ConfigurationError: the file cannot be made, or its file system knows no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Python's descriptors are not inherited: no child keeps the lock when this process has ended.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigurationError(
            f"{str(path)!r} cannot be made for a lock: {error.strerror}; name a folder that this user may write"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise ConfigurationError(
            f"{str(path)!r} cannot be locked: {error.strerror}; name a folder on a local file system"
        ) from error
    return Lock(path, descriptor)


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold a file's own lock, made where it is missing, though whoever holds it may put another file in its place.

    Goes on without the lock where the file system knows none, and where a holder keeps it for `seconds`: one that was
    frozen must not hold up the others for ever.

    Raises:
        OSError: the file cannot be made or opened.
    """
    deadline = time.monotonic() + seconds
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _lock_until(descriptor, deadline) or _is_at(path, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def _lock_until(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        except OSError:
            return False
        else:
            return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
