"""Checkpoints: folders `checkpoint-{step}` that are complete or absent.

    checkpoint-120/
        tensors.safetensors     weights, optimiser, random states
        state.json              format, step, metadata, and size and checksum of every file, its own included

A checkpoint is written aside, brought to the disk file by file, and renamed into place; so a crash at any moment
leaves the previous ones as they were. Nothing is pickled. One worker of a run writes at a time.

Knows nothing of training: tensors have names, metadata is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stillhouse.errors import CheckpointError, CodecError
from stillhouse.fingerprint import fingerprint
from student_worker.failpoints import fail_point
from student_worker.tensor_stream import chunks_of

FORMAT = "stillhouse.checkpoint"
VERSION = 1
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
STATE_LIMIT_BYTES = 64 << 20
"""A state.json above this is not ours."""
STALE_ASIDE_SECONDS = 900
"""A folder written aside on another host is taken for abandoned when nothing in it changed for this long."""

_NAME = re.compile(r"checkpoint-(\d+)")
_ASIDE = re.compile(r"\.(replaced-)?checkpoint-\d+\.(?P<host>.+)\.(?P<pid>\d+)\.aside")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, every checksum verified."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def save_checkpoint(
    output_dir: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    keep_last: int | None = None,
    keep_steps: Iterable[int] = (),
) -> Path:
    """Write `checkpoint-{step}` and return its folder; an existing one of that step is replaced.

    Args:
        output_dir: the run's folder; made if absent.
        step: committed steps.
        tensors: any device; tied tensors are written once per name.
        metadata: JSON: the position in the order, recipe hash, data fingerprint, schedules.
        keep_last: how many of the newest checkpoints stay; None keeps all.
        keep_steps: steps that stay whatever `keep_last` says, such as the best one.

    Raises:
        CheckpointError: If there are no tensors, a tensor holds a NaN, the metadata is not JSON, or the disk refuses.
            Nothing half-written is left, and the previous checkpoints are as they were.
    """
    _refuse_useless(step, tensors)
    target = output_dir / f"checkpoint-{step}"
    aside = output_dir / f".checkpoint-{step}.{socket.gethostname()}.{os.getpid()}.aside"
    try:
        metadata_json = json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {target} was not written: its metadata is not JSON: {error}") from error
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        _remove_stale_asides(output_dir)
        aside.mkdir()
        files = {TENSORS_FILE: _write_tensors(aside / TENSORS_FILE, tensors)}
        fail_point("mid-checkpoint", step)
        _write_state(aside / STATE_FILE, {"step": step, "files": files, "metadata": json.loads(metadata_json)})
        _sync_folder(aside)
        _put_in_place(aside, target)
        _sync_folder(output_dir)
    except (OSError, CodecError) as error:
        raise CheckpointError(
            f"checkpoint {target} was not written: {error}. Free space there or name another output folder, and "
            "resume; the previous checkpoints are as they were"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if keep_last is not None:
        prune_checkpoints(output_dir, keep_last, keep_steps)
    return target


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint back, every byte verified.

    Raises:
        CheckpointError: If a file is missing, truncated or altered, or of a newer format; the message names the file.
    """
    state = _read_state(folder)
    for name, expected in state["files"].items():
        actual = _measure(folder / name)
        if actual != expected:
            raise CheckpointError(f"{folder / name} is truncated or altered: {actual}, not {expected}; {_REMEDY}")
    try:
        tensors = load_file(folder / TENSORS_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS_FILE} cannot be read: {error}; {_REMEDY}") from error
    return Checkpoint(path=folder, step=state["step"], tensors=tensors, metadata=state["metadata"])


def checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first, sound or not; those being written aside are not there."""
    if not output_dir.is_dir():
        return []
    return sorted((path for path in output_dir.iterdir() if _NAME.fullmatch(path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """Return the step that a checkpoint folder's name tells."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"{folder} is not a checkpoint: its name is not checkpoint-STEP")
    return int(match[1])


def latest_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest checkpoint, None if there is none. Checks that its files are there and of the right size.

    Raises:
        CheckpointError: If the newest is damaged; the message names the newest sound one.
    """
    newest_first = checkpoints(output_dir)[::-1]
    if not newest_first:
        return None
    try:
        _check_sizes(newest_first[0])
    except CheckpointError as error:
        sound = next((str(path) for path in newest_first[1:] if _is_sound(path)), None)
        choice = f"remove {newest_first[0]} and resume from {sound}" if sound else "there is no sound one; start anew"
        raise CheckpointError(f"the newest checkpoint is damaged: {error}. To go on, {choice}") from error
    return newest_first[0]


def prune_checkpoints(output_dir: Path, keep_last: int, keep_steps: Iterable[int] = ()) -> None:
    """Delete all but the newest `keep_last` checkpoints and those of `keep_steps`.

    A folder that cannot be deleted stays: a run must not end because of an old checkpoint.
    """
    kept = set(keep_steps)
    for folder in checkpoints(output_dir)[: -max(keep_last, 1)]:
        if step_of(folder) not in kept:
            shutil.rmtree(folder, ignore_errors=True)


_REMEDY = "remove its folder to resume from the checkpoint before it"


def _refuse_useless(step: int, tensors: Mapping[str, Tensor]) -> None:
    if not any(tensor.numel() for tensor in tensors.values()):
        raise CheckpointError(f"checkpoint of step {step} refused: it holds no tensors")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise CheckpointError(f"checkpoint of step {step} refused: tensor {name!r} holds a NaN")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    with path.open("xb") as file:
        for chunk in chunks_of(tensors):
            digest.update(chunk)
            size += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "blake2b": digest.hexdigest()}


def _measure(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            return {"bytes": file.tell(), "blake2b": digest.hexdigest()}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from error


def _write_state(path: Path, content: dict[str, Any]) -> None:
    content = {"format": FORMAT, "version": VERSION, **content}
    content["checksum"] = fingerprint(json.dumps(content, sort_keys=True))
    with path.open("x", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def _read_state(folder: Path) -> dict[str, Any]:
    """Return a verified state.json; only then is any of its fields believed."""
    path = folder / STATE_FILE
    try:
        if path.stat().st_size > STATE_LIMIT_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; a checkpoint's has at most 64 MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is truncated or altered; {_REMEDY}") from error
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        named = f"{content.get('format')} version {content.get('version')}"
        raise CheckpointError(f"{path} is of format {named}; this release reads {FORMAT} version {VERSION}")
    if checksum != fingerprint(json.dumps(content, sort_keys=True)):
        raise CheckpointError(f"{path} is truncated or altered; {_REMEDY}")
    return dict(content)


def _check_sizes(folder: Path) -> None:
    for name, expected in _read_state(folder)["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes where {expected['bytes']} were written")


def _is_sound(folder: Path) -> bool:
    try:
        _check_sizes(folder)
    except CheckpointError:
        return False
    return True


def _put_in_place(aside: Path, target: Path) -> None:
    """Rename a finished folder to its name; one that is there already is moved away first, as POSIX asks."""
    if target.exists():
        replaced = aside.with_name(aside.name.replace(".checkpoint-", ".replaced-checkpoint-"))
        target.rename(replaced)
        aside.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        aside.rename(target)


def _sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: without this a rename may not outlive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale_asides(output_dir: Path) -> None:
    """Remove what killed writers left, lest the disk fill up with it."""
    for path in output_dir.iterdir():
        if (match := _ASIDE.fullmatch(path.name)) and _is_abandoned(path, match["host"], int(match["pid"])):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(aside: Path, host: str, pid: int) -> bool:
    if host == socket.gethostname() and (pid == os.getpid() or not Path(f"/proc/{pid}").exists()):
        return True
    try:
        changed = max(path.stat().st_mtime for path in (aside, *aside.iterdir()))
    except OSError:
        return False
    return time.time() - changed > STALE_ASIDE_SECONDS
