"""Checkpoints in a folder, which may be shared between hosts.

A checkpoint is written aside, brought to the disk file by file, and renamed into place; so a crash at any moment
leaves the others as they were. What a killed writer left is told by its name: host, process namespace and process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from stillhouse.errors import CheckpointError, CodecError, ConfigurationError
from student_worker.checkpoints.layout import (
    STATE_FILE,
    TENSORS_FILE,
    folder_name,
    state_bytes,
    step_of,
    write_tensors,
)
from student_worker.checkpoints.place import Place
from student_worker.failpoints import fail_point

STALE_ASIDE_SECONDS = 900
"""What another host wrote aside is taken for abandoned when nothing in it changed for this long."""
MAX_RENAMES = 5
"""Attempts to put a checkpoint in its place, while another worker puts the same one there."""

_ASIDE = re.compile(
    r"\.(?P<kind>|replaced-|removed-)(?P<name>checkpoint-\d+|[a-z]+\.json|probe)\.(?P<host>.+)\.(?P<pid>\d+)\.aside"
)


class Folder(Place):
    """Checkpoints in a local folder; made when it is first written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = str(root)

    def check_writable(self) -> None:
        """Make the folder, and a file in it."""
        probe = self._aside("", "probe")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                probe.write_bytes(b"0")
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"checkpoint_dir {self.address!r} cannot be written: {error.strerror or error}; name another"
            ) from error

    def steps(self) -> list[int]:
        """Return the steps whose folder is there."""
        try:
            names = [path.name for path in self.root.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CheckpointError(f"{self.address} cannot be read: {error.strerror or error}") from error
        return sorted(step for name in names if (step := step_of(name)) is not None)

    def write(
        self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], best: Mapping[str, Any] | None
    ) -> None:
        """Write aside, sync, rename, sync."""
        target, aside = self.root / folder_name(step), self._aside("", folder_name(step))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.clean()
            aside.mkdir()
            with (aside / TENSORS_FILE).open("xb") as file:
                files = {TENSORS_FILE: write_tensors(file.write, tensors)}
                _sync(file)
            fail_point("mid-checkpoint", step)
            with (aside / STATE_FILE).open("xb") as file:
                file.write(state_bytes(step, files, metadata, best))
                _sync(file)
            _sync_folder(aside)
            self._put_in_place(aside, target)
            _sync_folder(self.root)
        except (OSError, CodecError) as error:
            raise CheckpointError(
                f"checkpoint {target} was not written: {error}. Free space there or name another checkpoint_dir, and "
                "resume; the previous checkpoints are as they were"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def remove(self, step: int) -> None:
        """Rename, then delete."""
        removed = self._aside("removed-", folder_name(step))
        with contextlib.suppress(OSError):
            (self.root / folder_name(step)).rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def clean(self) -> None:
        """Delete abandoned folders; one that was to be replaced by what never came goes back to its place."""
        if not self.root.is_dir():
            return
        for path in self.root.iterdir():
            match = _ASIDE.fullmatch(path.name)
            if match is None or not _is_abandoned(path, match["host"], int(match["pid"])):
                continue
            if match["kind"] == "replaced-":
                with contextlib.suppress(OSError):  # there is a newer one: then this is not needed
                    path.rename(self.root / match["name"])
            with contextlib.suppress(OSError):
                path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)

    def write_small(self, name: str, text: str) -> None:
        """Write aside, sync, rename."""
        aside = self._aside("", name)
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                _sync(file)
            aside.replace(self.root / name)
        except OSError as error:
            raise CheckpointError(
                f"{self.root / name} could not be written: {error.strerror or error}. Free space there and resume"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def read_small(self, name: str) -> str | None:
        """Return the text, None if there is no such file."""
        try:
            return (self.root / name).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CheckpointError(f"{self.root / name} cannot be read: {error.strerror or error}") from error

    def _open(self, step: int, name: str) -> AbstractContextManager[BinaryIO]:
        return (self.root / folder_name(step) / name).open("rb")

    def _size(self, step: int, name: str) -> int:
        return (self.root / folder_name(step) / name).stat().st_size

    def _aside(self, kind: str, name: str) -> Path:
        return self.root / f".{kind}{name}.{_host()}.{os.getpid()}.aside"

    def _put_in_place(self, aside: Path, target: Path) -> None:
        """Rename a finished folder to its name; one that is there already is moved away first, as POSIX asks."""
        replaced = self._aside("replaced-", target.name)
        for attempt in range(1, MAX_RENAMES + 1):
            with contextlib.suppress(FileNotFoundError):
                target.rename(replaced)
            try:
                aside.rename(target)
                break
            except OSError as error:
                # Another worker came first with the same step; its bits are ours to replace.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == MAX_RENAMES:
                    raise
                shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: without this a rename may not outlive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives know it of files only
            raise
    finally:
        os.close(descriptor)


def _host() -> str:
    """Return what a process number means something in: two containers may have one host's name between them."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        namespace = 0
    return f"{socket.gethostname()}-{namespace}"


def _is_abandoned(aside: Path, host: str, pid: int) -> bool:
    if host == _host():
        return pid == os.getpid() or not _is_alive(pid)
    try:
        changed = max(path.stat().st_mtime for path in (aside, *aside.glob("*")))
    except OSError:
        return False
    return time.time() - changed > STALE_ASIDE_SECONDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
