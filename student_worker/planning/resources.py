"""What memory this machine has left: of the host or of a device. In bytes."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Return how much a process may still take where a student on `device` lives.

    On the CPU that is the least of what the host has available and what a control group or a limit of this process
    leaves.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    own = psutil.Process().memory_info()
    free = [int(psutil.virtual_memory().available), *_left_by_groups()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        free.append(soft - int(own.vms))
    return max(0, min(free))


def _left_by_groups() -> list[int]:
    """Return what each control group that this process is in leaves, the memory that only caches files not counted."""
    found = []
    for group in _groups():
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with contextlib.suppress(OSError, ValueError):
                allowed = int((group / limit).read_text())  # `max` is no number: no limit
                used = int((group / usage).read_text())
                found.append(allowed - used + _statistic(group / "memory.stat", cached))
    return found


def _groups() -> list[Path]:
    """Return the folders of this process's memory control groups, versions 2 and 1, each with those it lies in."""
    folders = {CGROUPS, CGROUPS / "memory"}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{os.getpid()}/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                root = CGROUPS / controllers
                below = (root / path.lstrip("/")).resolve()
                folders |= {folder for folder in (below, *below.parents) if folder.is_relative_to(root)}
    return sorted(folders)


def _statistic(file: Path, name: str) -> int:
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
