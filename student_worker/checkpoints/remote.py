"""Checkpoints at an address that fsspec can open: s3://, gs://, abfs://, memory:// and others.

An object store has no rename. So the tensors are written first, under a name that no other write has, and state.json
last, in one piece: it names them, and is what makes a checkpoint exist or replaces an earlier one of that step.
Tensors that no state.json names are invisible, and are removed once they are old.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

import structlog
from torch import Tensor

from stillhouse.errors import CheckpointError, ConfigurationError
from student_worker.checkpoints.layout import STATE_FILE, folder_name, state_bytes, step_of, write_tensors
from student_worker.checkpoints.place import Place
from student_worker.failpoints import fail_point

STALE_TENSORS_SECONDS = 6 * 3600
"""Tensors without a state.json are removed at this age: longer than any upload, and than clocks differ."""

_log = structlog.get_logger(__name__)


class Remote(Place):
    """Checkpoints below an address.

    Args:
        address: of any protocol that fsspec knows.
        options: for fsspec's file system, besides what it finds in the environment.

    Raises:
        ConfigurationError: the protocol is unknown, or its package is not installed.
    """

    def __init__(self, address: str, **options: Any) -> None:
        import fsspec

        self.address = without_secrets(address)
        try:
            self._files, root = fsspec.url_to_fs(address, use_listings_cache=False, **options)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(
                f"checkpoint_dir {self.address!r} cannot be used: {error}. For s3:// install 'stillhouse[s3]', for "
                "another protocol fsspec's package for it"
            ) from error
        self._root = root.rstrip("/")
        self._is_clean = False

    def check_writable(self) -> None:
        """Write a file, and remove it."""
        probe = f"{self._root}/.probe-{secrets.token_hex(8)}"
        try:
            self._make(self._root)
            self._files.pipe_file(probe, b"0")
            self._files.rm_file(probe)
        except Exception as error:
            raise ConfigurationError(
                f"checkpoint_dir {self.address!r} cannot be written: {_said(error)}; name another, or give this worker "
                "the right to write and delete there"
            ) from error

    def steps(self) -> list[int]:
        """Return the steps that have a state.json."""
        steps = (step_of(name) for name in self._names(self._root))
        return sorted(step for step in steps if step is not None and self._is_complete(step))

    def write(
        self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], best: Mapping[str, Any] | None
    ) -> None:
        """Write the tensors, then the state.json that names them; then remove what it has replaced."""
        self.clean()
        name = f"tensors-{secrets.token_hex(8)}.safetensors"
        replaced = self._tensors_file(step)
        try:
            with self._asking(f"did not take the checkpoint of step {step}"):
                self._make(f"{self._root}/{folder_name(step)}")
                with self._whole(self._at(step, name)) as file:
                    files = {name: write_tensors(file.write, tensors)}
                fail_point("mid-checkpoint", step)
                self._files.pipe_file(self._at(step, STATE_FILE), state_bytes(step, files, metadata, best))
        except CheckpointError:
            self._delete(step, name)
            raise
        if replaced is not None:
            self._delete(step, replaced)

    def remove(self, step: int) -> None:
        """Remove state.json, then the rest."""
        if self._delete(step, STATE_FILE):
            with contextlib.suppress(CheckpointError):
                for name in self._names(f"{self._root}/{folder_name(step)}"):
                    self._delete(step, name)

    def clean(self) -> None:
        """Remove old tensors that belong to no checkpoint; once, as it asks for every file."""
        if self._is_clean:
            return
        self._is_clean = True
        with contextlib.suppress(Exception):
            for folder in self._names(self._root):
                if (step := step_of(folder)) is None:
                    continue
                named = {STATE_FILE, self._tensors_file(step)}
                for name in self._names(f"{self._root}/{folder}"):
                    if name not in named and self._age(step, name) > STALE_TENSORS_SECONDS:
                        self._delete(step, name)

    def write_small(self, name: str, text: str) -> None:
        """Put one object, which is all or nothing."""
        with self._asking(f"did not take {name}"):
            self._files.pipe_file(f"{self._root}/{name}", text.encode())

    def read_small(self, name: str) -> str | None:
        """Return the text, None if there is no such object."""
        with self._asking(f"does not give {name}"), contextlib.suppress(FileNotFoundError):
            return str(self._files.cat_file(f"{self._root}/{name}").decode(errors="replace"))
        return None

    def _open(self, step: int, name: str) -> AbstractContextManager[BinaryIO]:
        return self._said_as_oserror(step, name)

    @contextlib.contextmanager
    def _said_as_oserror(self, step: int, name: str) -> Iterator[BinaryIO]:
        """Open to read; what a store's own library raises is an OSError to the caller."""
        try:
            with self._files.open(self._at(step, name), "rb", cache_type="readahead") as file:
                yield file
        except (OSError, CheckpointError):
            raise
        except Exception as error:
            raise OSError(_said(error)) from error

    def _size(self, step: int, name: str) -> int:
        try:
            return int(self._files.info(self._at(step, name))["size"])
        except OSError:
            raise
        except Exception as error:
            raise OSError(_said(error)) from error

    @contextlib.contextmanager
    def _whole(self, path: str) -> Iterator[Any]:
        """Open to write; an upload that fails is called off, where closing it would complete it."""
        file = self._files.open(path, "wb")
        try:
            yield file
            file.close()
        except BaseException:
            with contextlib.suppress(Exception):
                file.discard()
            file.closed = True
            raise

    def _delete(self, step: int, name: str) -> bool:
        try:
            with self._asking("did not remove a file"), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._at(step, name))
        except CheckpointError as error:
            _log.warning("not_removed", path=f"{self.path(step)}/{name}", reason=str(error))
            return False
        return True

    def _make(self, folder: str) -> None:
        """Make a folder where the store has folders; whether that was enough is for the write to say.

        The first part of a path is never made: it would be a bucket, of a mistyped name as likely as not.
        """
        parent = folder.rpartition("/")[0]
        if not parent:
            return
        with contextlib.suppress(Exception):
            if not self._files.exists(parent):
                self._make(parent)
            self._files.mkdir(folder, create_parents=False)

    def _tensors_file(self, step: int) -> str | None:
        """Return the name of a step's tensors, None where no state.json names one."""
        with contextlib.suppress(CheckpointError):
            return self.state(step).tensors_file
        return None

    def _is_complete(self, step: int) -> bool:
        # Not `exists`: some stores take any failure for absence.
        with self._asking("cannot be listed"), contextlib.suppress(FileNotFoundError):
            self._files.info(self._at(step, STATE_FILE))
            return True
        return False

    def _names(self, folder: str) -> list[str]:
        with self._asking("cannot be listed"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [str(name).rstrip("/").rpartition("/")[2] for name in self._files.ls(folder, detail=False)]
        return []

    def _age(self, step: int, name: str) -> float:
        changed: datetime = self._files.modified(self._at(step, name))
        return time.time() - changed.timestamp()

    def _at(self, step: int, name: str) -> str:
        return f"{self._root}/{folder_name(step)}/{name}"

    @contextlib.contextmanager
    def _asking(self, refused: str) -> Iterator[None]:
        """Say what the store refused; each store's library has errors of its own."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"checkpoint_dir {self.address} {refused}: {_said(error)}. Mend that or name another checkpoint_dir, "
                "and resume; the previous checkpoints are as they were"
            ) from error


def without_secrets(address: str) -> str:
    """Return an address without the user and password, or the query, that it may hold."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
