"""Where checkpoints are kept: what a local folder and an object store have in common.

A place holds at most one checkpoint for each step, complete or absent, and a few small text files beside them. Knows
nothing of when to write, which to keep or which to resume from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from torch import Tensor

from stillhouse.errors import CheckpointError
from student_worker.checkpoints.layout import (
    REMEDY,
    STATE_FILE,
    STATE_LIMIT_BYTES,
    Checkpoint,
    DamagedError,
    State,
    folder_name,
    parse_state,
    read_verified,
)


class Place(ABC):
    """One run's checkpoints. `address` is what messages call it: it holds no secret."""

    address: str

    @abstractmethod
    def check_writable(self) -> None:
        """Make the place if it is absent, and try that it can be written.

        Raises:
            ConfigurationError: it cannot.
        """

    @abstractmethod
    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, sound or not, in order; those being written are not there."""

    @abstractmethod
    def write(
        self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], best: Mapping[str, Any] | None
    ) -> None:
        """Write a checkpoint, complete or not at all; one of the same step is replaced.

        Raises:
            CheckpointError: the place refuses. Nothing half-written is left, and the others are as they were.
        """

    @abstractmethod
    def remove(self, step: int) -> None:
        """Remove a checkpoint, so that it is absent before any part of it is; one that cannot be removed stays."""

    @abstractmethod
    def clean(self) -> None:
        """Remove what killed writers left, and put back what they were about to replace."""

    @abstractmethod
    def write_small(self, name: str, text: str) -> None:
        """Replace a small file, complete or not at all.

        Raises:
            CheckpointError: the place refuses.
        """

    @abstractmethod
    def read_small(self, name: str) -> str | None:
        """Return a small file's text, None if there is none."""

    @abstractmethod
    def _open(self, step: int, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file of a checkpoint.

        Raises:
            OSError: it cannot be opened.
        """

    @abstractmethod
    def _size(self, step: int, name: str) -> int:
        """Return a file's size in bytes.

        Raises:
            OSError: it cannot be told.
        """

    def path(self, step: int) -> str:
        """Return the folder or address of a step's checkpoint."""
        return f"{self.address.rstrip('/')}/{folder_name(step)}"

    def state(self, step: int) -> State:
        """Return a checkpoint's verified state.json, after a look at the sizes of its files.

        Raises:
            DamagedError: a file is missing, truncated or altered.
            CheckpointError: it cannot be read, or is of another format.
        """
        where = f"{self.path(step)}/{STATE_FILE}"
        try:
            with self._open(step, STATE_FILE) as file:
                data = file.read(STATE_LIMIT_BYTES + 1)
            if len(data) > STATE_LIMIT_BYTES:
                raise DamagedError(f"{where} has more than {STATE_LIMIT_BYTES} bytes; a checkpoint's has not")
            state = parse_state(where, data)
            where = f"{self.path(step)}/{state.tensors_file}"
            size = self._size(step, state.tensors_file)
        except OSError as error:
            raise _unreadable(where, error) from error
        if state.step != step:
            raise DamagedError(f"{self.path(step)} holds the checkpoint of step {state.step}: it was renamed")
        if size != state.num_bytes:
            raise DamagedError(f"{where} has {size} bytes where {state.num_bytes} were written")
        return state

    def read(self, step: int) -> Checkpoint:
        """Return a checkpoint, every byte verified.

        Raises:
            DamagedError: a file is missing, truncated or altered.
            CheckpointError: it cannot be read, or is of another format.
        """
        state = self.state(step)
        where = f"{self.path(step)}/{state.tensors_file}"
        try:
            with self._open(step, state.tensors_file) as file:
                tensors = read_verified(where, file, state)
        except OSError as error:
            raise _unreadable(where, error) from error
        return Checkpoint(self.path(step), step, tensors, state.metadata)


def _unreadable(where: str, error: OSError) -> CheckpointError:
    """A missing file is damage, which an older checkpoint mends; what hinders reading may pass, and is to be said."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return DamagedError(f"{where} is missing")
    return CheckpointError(f"{where} cannot be read: {error.strerror or error}; mend that and resume, or {REMEDY}")
