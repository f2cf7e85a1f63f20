"""How many processor threads a worker computes with: part of what makes two runs equal to the bit.

A matrix product may round differently with another number of threads, so the number must not follow from how many
workers share a host. It is the cores divided by `micro_shards`, as if the most workers were there; the first worker of
a run records it in `run.json`, and whoever comes later, or resumes elsewhere, takes that.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import structlog

from stillhouse.errors import ConfigurationError
from student_worker.recipe.schema import Recipe

THREADS_KEY = "torch_threads"
"""In the recipe, and in a run's identity where the bits depend on it."""
OMP_VARIABLE = "OMP_NUM_THREADS"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Linux: the microseconds of processor time that this container may use per period, and the period."""

_log = structlog.get_logger(__name__)


def available_cores() -> int:
    """Return how many cores this process may use: those it may run on, or fewer where a container has a quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return cores  # no such file, or "max": no quota


def choose_threads(recipe: Recipe, recorded: int | None) -> int:
    """Return the threads of a worker: the run's own, the recipe's, the environment's, or the cores' share.

    Raises:
        ConfigurationError: the recipe names another number than the run began with.
    """
    named = recipe.torch_threads
    if recorded is not None:
        if named not in (None, recorded):
            raise ConfigurationError(
                f"torch_threads is {named}, but the run in {str(recipe.output_dir)!r} began with {recorded}, and its "
                f"bits depend on it: name {recorded} or no number, or begin anew in another folder"
            )
        return recorded
    if named is not None:
        return named
    text = os.environ.get(OMP_VARIABLE, "")
    if text.isdecimal() and int(text) > 0:
        return int(text)
    return max(1, available_cores() // recipe.micro_shards)


def settle_threads(recipe: Recipe) -> int:
    """Choose the number, and give it to torch and to child processes; call it before torch computes anything.

    Raises:
        ConfigurationError: the recipe names another number than the run began with.
    """
    import torch

    threads = choose_threads(recipe, _recorded(recipe.output_dir / "run.json"))
    torch.set_num_threads(threads)
    os.environ[OMP_VARIABLE] = str(threads)
    _log.info(
        "threads",
        of_this_worker=threads,
        cores=available_cores(),
        change_by="torch_threads, the same in every worker of a run",
    )
    return threads


def _recorded(path: Path) -> int | None:
    """Return what the run in the folder began with, None where there is none or its bits don't depend on it."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["identity"][THREADS_KEY])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # what is wrong with the file is said where it is needed
