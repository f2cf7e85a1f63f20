"""A GPU of its own for each worker of a host.

Docker gives every replica of a service the same GPUs, so workers share them out among themselves: each locks a file
named for a GPU's UUID, in a folder that all of them mount. Those that the teacher computes on are reserved by name, not
only by lock, since a worker could take one while the teacher starts anew. Knows nothing of recipes, nor of torch: a GPU
is chosen before torch looks for any.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from stillhouse.errors import ConfigurationError
from student_worker.locks import Lock, try_lock

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"

WAIT_SECONDS = 10.0
"""For a GPU to become free, before it is an error: a process that was killed may take seconds to leave its GPU."""

POLL_SECONDS = 0.25
LISTING_SECONDS = 30.0
"""Longest wait for the driver: it may have to wake every GPU first."""

MAX_SHARERS = 64
"""Of one GPU; far more than its memory can hold."""

_GPU_LINE = re.compile(r"^GPU (?P<index>\d+): (?P<name>.*) \(UUID: (?P<uuid>[\w-]+)\)$")
_MIG_LINE = re.compile(r"^\s+(?P<name>MIG .*?)\s+Device\s+\d+: \(UUID: (?P<uuid>[\w-]+)\)$")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device that one process can have: a GPU, or a part of one that MIG has split."""

    uuid: str
    name: str
    index: int
    """Of the whole GPU, in the driver's order."""


ListGpus = Callable[[], Sequence[Gpu]]


def list_gpus() -> list[Gpu]:
    """Return what the driver shows to this process, in its own order; empty where there is no driver.

    Raises:
        ConfigurationError: there is a driver, but it fails.
    """
    try:
        told = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=LISTING_SECONDS, check=False
        )
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"nvidia-smi -L does not answer: {error}; see that the driver works") from error
    if told.returncode:
        reason = " ".join((told.stdout + told.stderr).split()) or f"exit code {told.returncode}"
        if "No devices were found" in reason:
            return []
        raise ConfigurationError(f"nvidia-smi -L fails: {reason}; mend the driver, or set device to cpu")
    return parse_listing(told.stdout)


def parse_listing(text: str) -> list[Gpu]:
    """Return the devices that `nvidia-smi -L` lists; of a GPU that MIG has split, its parts."""
    found: list[Gpu] = []
    whole: Gpu | None = None
    for line in text.splitlines():
        if match := _GPU_LINE.match(line):
            whole = Gpu(match["uuid"], match["name"], int(match["index"]))
            found.append(whole)
        elif (match := _MIG_LINE.match(line)) and whole is not None:
            if found[-1] is whole:
                found.pop()
            found.append(Gpu(match["uuid"], f"{whole.name} {match['name']}", whole.index))
    return found


def visible_gpus(gpus: Sequence[Gpu], names: str | None) -> list[Gpu]:
    """Return those that `CUDA_VISIBLE_DEVICES` leaves; it names them by UUID, by the begin of one, or by number."""
    if names is None:
        return list(gpus)
    left: list[Gpu] = []
    for name in (part.strip() for part in names.split(",")):
        matching = _named(gpus, name)
        if not matching:
            break  # as CUDA does: what follows a name that is none is not seen
        left += [gpu for gpu in matching if gpu not in left]
    return left


def reserved_gpus(gpus: Sequence[Gpu], names: Sequence[str]) -> list[Gpu]:
    """Return the devices that somebody else computes on; one that this process cannot see is nobody's concern.

    Args:
        gpus: what there is.
        names: UUIDs, or beginnings of one as the driver takes them, or numbers in the driver's order.

    Raises:
        ConfigurationError: a name that is neither.
    """
    found: list[Gpu] = []
    for name in (part.strip() for part in names):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[\w-]+", name):
            raise ConfigurationError(
                f"reserved_devices: {name!r} is no GPU; give UUIDs, as nvidia-smi -L shows them, or its numbers"
            )
        found += [gpu for gpu in _named(gpus, name) if gpu not in found]
    return found


def _named(gpus: Sequence[Gpu], name: str) -> list[Gpu]:
    if name.isdecimal():
        return [gpu for gpu in gpus if gpu.index == int(name)]
    return [gpu for gpu in gpus if name and gpu.uuid.startswith(name)]


def take_gpu(
    folder: Path,
    *,
    reserved: Sequence[str] = (),
    share: bool = False,
    gpus: ListGpus = list_gpus,
    wait_seconds: float = WAIT_SECONDS,
) -> tuple[Gpu, Lock] | None:
    """Take a GPU that no other worker of this host has, and let this process see no other.

    Args:
        folder: on the host's own file system, the same for all workers.
        reserved: devices that are never taken: the teacher's.
        share: take the one with the fewest workers on it where none is free.
        gpus: lists what there is.
        wait_seconds: how long to wait for one to become free.

    Returns:
        The GPU and its lock, which is held until it is released or this process ends; None where there is no GPU.

    Raises:
        ConfigurationError: there are more workers than GPUs.
    """
    there = visible_gpus(gpus(), os.environ.get(VISIBLE_VARIABLE))
    if not there:
        return None
    kept = reserved_gpus(there, reserved)
    free = [gpu for gpu in there if gpu not in kept]
    deadline = time.monotonic() + (wait_seconds if free else 0)
    while True:
        for sharers in range(MAX_SHARERS if share else 1):
            for gpu in free:
                lock = try_lock(folder / f"{gpu.uuid}.{sharers}.lock")
                if lock is not None:
                    os.environ[VISIBLE_VARIABLE] = gpu.uuid
                    _log.info("gpu_taken", uuid=gpu.uuid, gpu=gpu.name, shared_with=sharers)
                    return gpu, lock
        if time.monotonic() >= deadline:
            raise ConfigurationError(_none_free(len(there), kept, folder))
        time.sleep(POLL_SECONDS)


def _none_free(there: int, kept: Sequence[Gpu], folder: Path) -> str:
    also = f", {len(kept)} reserved ({', '.join(gpu.uuid for gpu in kept)})" if kept else ""
    return (
        f"no GPU is free for this worker: of {there} here{also}, other workers hold {there - len(kept)} "
        f"(locks in {str(folder)!r}); start fewer workers, or let them share with share_devices"
    )
