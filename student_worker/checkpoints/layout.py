"""The bytes of a checkpoint: a safetensors file, and a state.json that says what it must be.

    checkpoint-120/
        tensors.safetensors     weights and optimizer
        state.json              format, step, metadata, and size and checksum of every file, its own included

Nothing is pickled. Knows nothing of folders or stores: it writes to a sink and reads from an open file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from stillhouse.errors import CheckpointError, CodecError
from stillhouse.fingerprint import fingerprint
from student_worker.tensor_stream import chunks_of, read_tensors

FORMAT = "stillhouse.checkpoint"
VERSION = 1
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
STATE_LIMIT_BYTES = 64 << 20
"""A state.json above this is not ours."""
DIGEST = "xxh3_128"
"""What tells damage; it would not keep somebody from altering a file on purpose. BLAKE2b took fifty times as long, more
than half of a whole write."""
REMEDY = "remove it to resume from the checkpoint before it"

_FOLDER = re.compile(r"checkpoint-(\d+)")
_FILE = re.compile(r"tensors(-[0-9a-f]+)?\.safetensors")


class DamagedError(CheckpointError):
    """A checkpoint that is not what was written: incomplete, truncated or altered. An older one may be sound."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory, every checksum verified; `path` is its folder or address."""

    path: str
    step: int
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class State:
    """A verified state.json. `best` is the figure by which these weights were the best so far, if they were."""

    step: int
    tensors_file: str
    num_bytes: int
    digest: str
    metadata: dict[str, Any]
    best: dict[str, Any] | None


def folder_name(step: int) -> str:
    """Return the name of a step's checkpoint."""
    return f"checkpoint-{step}"


def step_of(name: str) -> int | None:
    """Return the step that a checkpoint's name tells, None if it is no checkpoint's."""
    match = _FOLDER.fullmatch(name)
    return int(match[1]) if match else None


def refuse_useless(step: int, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what nobody could resume from.

    Raises:
        CheckpointError: there are no tensors, or one holds a NaN.
    """
    if not any(tensor.numel() for tensor in tensors.values()):
        raise CheckpointError(f"checkpoint of step {step} refused: it holds no tensors")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and _holds_nan(tensor):
            raise CheckpointError(f"checkpoint of step {step} refused: tensor {name!r} holds a NaN")


def _holds_nan(tensor: Tensor) -> bool:
    # The greatest element is NaN iff any is; this takes no memory, as a mask would.
    return bool(torch.isnan((tensor.float() if tensor.element_size() == 1 else tensor).amax()))


def metadata_copy(where: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as it will be read back; a copy, so that what changes later is not in it.

    Raises:
        CheckpointError: it is not JSON.
    """
    try:
        return dict(json.loads(json.dumps(metadata, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {where} was not written: its metadata is not JSON: {error}") from error


def write_tensors(write: Callable[[memoryview], object], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Hand the safetensors bytes to `write`; return their number and checksum."""
    digest, size = xxhash.xxh3_128(), 0
    for chunk in chunks_of(tensors):
        digest.update(chunk)
        write(chunk)
        size += len(chunk)
    return {"bytes": size, DIGEST: digest.hexdigest()}


def state_bytes(step: int, files: dict[str, Any], metadata: Mapping[str, Any], best: Mapping[str, Any] | None) -> bytes:
    """Return the content of a state.json."""
    content = {"format": FORMAT, "version": VERSION, "step": step, "files": files, "metadata": metadata, "best": best}
    content["checksum"] = fingerprint(json.dumps(content, sort_keys=True))
    return json.dumps(content, indent=1, sort_keys=True).encode()


def parse_state(where: str, data: bytes) -> State:
    """Verify a state.json; only then is any of its fields believed.

    Raises:
        DamagedError: it is truncated or altered.
        CheckpointError: it is of another format.
    """
    try:
        content = json.loads(data)
        checksum = content.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{where} is truncated or altered") from error
    # First, and in every version alike: a flipped bit in the version is damage, and not a newer release.
    if checksum != fingerprint(json.dumps(content, sort_keys=True)):
        raise DamagedError(f"{where} is truncated or altered")
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        named = f"{content.get('format')} version {content.get('version')}"
        raise CheckpointError(f"{where} is of format {named}; this release reads {FORMAT} version {VERSION}")
    try:
        ((name, file),) = content["files"].items()
        if not _FILE.fullmatch(name):
            raise ValueError(name)
        best = content["best"]
        return State(
            step=int(content["step"]),
            tensors_file=name,
            num_bytes=int(file["bytes"]),
            digest=str(file[DIGEST]),
            metadata=dict(content["metadata"]),
            best=None if best is None else dict(best),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is not one that this release writes: {error!r}; {REMEDY}") from error


def read_verified(where: str, file: BinaryIO, state: State) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint once, from start to end: nothing but them is held in memory.

    Raises:
        DamagedError: they are not, byte for byte, what was written.
    """
    digest, size = xxhash.xxh3_128(), 0

    def read_into(target: memoryview) -> None:
        nonlocal size
        for part in _filled(where, file, target):
            digest.update(part)
            size += len(part)

    try:
        tensors = read_tensors(read_into, limit_bytes=state.num_bytes)
    except CodecError as error:
        raise DamagedError(f"{where} is altered: {error}") from error
    if size != state.num_bytes or file.read(1) or digest.hexdigest() != state.digest:
        raise DamagedError(f"{where} is truncated or altered: it is not the {state.num_bytes} bytes that were written")
    return tensors


def _filled(where: str, file: BinaryIO, target: memoryview) -> Iterator[memoryview]:
    done = 0
    while done < len(target):
        data = file.read(len(target) - done)
        if not data:
            raise DamagedError(f"{where} is truncated")
        target[done : done + len(data)] = data
        yield target[done : done + len(data)]
        done += len(data)
