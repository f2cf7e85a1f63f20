"""A folder in which prepared corpora are kept by key, each whole or not at all, prepared by one process at a time.

A corpus is written into a folder of its own beside its place, flushed, and renamed into it. A lock keeps other
processes from doing the same work meanwhile; it saves work and nothing depends on it, so waiting for it has a bound.
Also remembers the fingerprints of files by their path, size and times, so that a restart reads no corpus again.
Knows nothing of tokens.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import platformdirs
from filelock import FileLock, Timeout

from stillhouse.errors import DataError

LOCK_WAIT_SECONDS: Final = 3600.0
"""How long one process waits for another that prepares the same corpus, before it does the work itself."""

READ_BYTES: Final = 1 << 20

SETTLED_NANOSECONDS: Final = 2_000_000_000
"""A file that changed less than this ago may change again within one tick of its clock, unseen."""

T = TypeVar("T")


def default_cache_dir() -> Path:
    """Return where prepared corpora are kept unless told otherwise: the user's cache folder."""
    return Path(platformdirs.user_cache_dir("stillhouse")) / "data"


class Cache:
    """Prepared corpora under a folder, by key.

    Raises:
        DataError: the folder cannot be made.
    """

    def __init__(self, folder: Path, *, lock_wait_seconds: float = LOCK_WAIT_SECONDS) -> None:
        self.folder = folder
        self._lock_wait_seconds = lock_wait_seconds
        with _faults_of(folder):
            (folder / "digests").mkdir(parents=True, exist_ok=True)

    def get_or_make(self, key: str, load: Callable[[Path], T | None], make: Callable[[Path], None]) -> tuple[T, bool]:
        """Return what `load` gives for the folder under `key`, after `make` has filled it where it is not there.

        Args:
            key: names the content.
            load: reads a folder; None if it holds nothing that can be used.
            make: fills an empty folder; what it raises leaves nothing behind.

        Returns:
            What was loaded, and whether it was there already.

        Raises:
            DataError: the folder cannot be written.
        """
        place = self.folder / key
        if (found := load(place)) is not None:
            return found, True
        with self._locked(key) as alone:
            if (found := load(place)) is not None:
                return found, True
            if alone:
                self._remove_leftovers(key)
            with _faults_of(self.folder):
                self._fill(place, load, make)
            made = load(place)
        if made is None:
            raise DataError(f"{place} was prepared but cannot be read back; is its disk sound?")
        return made, False

    def file_digest(self, path: Path) -> str:
        """Return the fingerprint (BLAKE2b-128) of a file's bytes; read only if the file changed since the last time.

        Raises:
            DataError: the file cannot be read.
        """
        with _faults_of(path, reading=True):
            state = path.stat()
            name = repr((str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino))
            remembered = self.folder / "digests" / hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
            if remembered.is_file() and (digest := remembered.read_text(encoding="ascii")):
                return digest
            hasher = hashlib.blake2b(digest_size=16)
            with path.open("rb") as file:
                while chunk := file.read(READ_BYTES):
                    hasher.update(chunk)
            if path.stat() == state and time.time_ns() - state.st_ctime_ns > SETTLED_NANOSECONDS:
                _remember(remembered, hasher.hexdigest())
        return hasher.hexdigest()

    @contextmanager
    def _locked(self, key: str) -> Iterator[bool]:
        lock = FileLock(self.folder / f"{key}.lock", timeout=self._lock_wait_seconds)
        try:
            lock.acquire()
        except (Timeout, OSError, NotImplementedError):
            yield False  # Held for longer than we wait, or a file system without locks: the rename keeps us safe.
            return
        try:
            yield True
        finally:
            lock.release()

    def _remove_leftovers(self, key: str) -> None:
        for leftover in self.folder.glob(f"{key}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _fill(self, place: Path, load: Callable[[Path], object], make: Callable[[Path], None]) -> None:
        aside = place.with_name(f"{place.name}.partial-{uuid.uuid4().hex}")
        aside.mkdir()
        try:
            make(aside)
            for file in aside.iterdir():
                _flush(file)
            _flush(aside)
            if load(place) is not None:
                return  # Another process that had no lock either was quicker: the same key, so the same content.
            shutil.rmtree(place, ignore_errors=True)
            try:
                aside.rename(place)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise  # The others: quicker still, between the look and the rename.
            else:
                _flush(self.folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _faults_of(path: Path, *, reading: bool = False) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if reading:
            raise DataError(f"{path} cannot be read: {reason}") from error
        remedy = "free some space" if error.errno == errno.ENOSPC else "make it writable"
        raise DataError(f"the cache folder {path} cannot be written: {reason}; {remedy} or name another") from error


def _remember(place: Path, text: str) -> None:
    aside = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    # What is not remembered is computed again: a folder that cannot be written fails where it matters.
    with suppress(OSError):
        aside.write_text(text, encoding="ascii")
        aside.replace(place)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
