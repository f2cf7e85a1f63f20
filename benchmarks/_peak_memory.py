"""How much memory a piece of work needs at its peak, in a process of its own: what was taken may not go back."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

_R = TypeVar("_R")


def apart(work: Callable[[], _R], timeout_seconds: float) -> _R:
    """Return what some work returns, done in a process of its own; it and its result must be picklable."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result(timeout=timeout_seconds)


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the bytes that a piece of work needs at its peak over what stood before it, on a GPU if there is one."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak of what came before
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
