"""How long does a checkpoint stop the training, written in the background and not, and beside torch's own writer?

The state is that of a student of 100 million parameters in float32: weights and AdamW's two moments. A stall is how
long the call takes after which the weights may move; a whole is until the bytes are on the disk. Every way brings them
there: torch.distributed.checkpoint with `sync_files`, ours with fsync; ours alone has checksums.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from benchmarks._result import Result, Value
from student_worker.checkpoints import CheckpointStore

WAIT_SECONDS = 600.0
"""A write that takes longer has failed."""

Way = Callable[[int, dict[str, Tensor], Path], Callable[[], object]]
"""Begins to write the checkpoint of a step; what it returns waits for the end."""


def measure(quick: bool) -> Result:
    """Time every way in turn; the figures compare medians."""
    parameters, rounds = (1_000_000, 2) if quick else (100_000_000, 3)
    tensors = _state(parameters)
    with tempfile.TemporaryDirectory() as folder, _alone(Path(folder)):
        ways: dict[str, Way] = {
            "foreground": _Ours(background=False),
            "background": _Ours(background=True),
            "torch save": _torch_save,
            "torch async_save": _torch_async_save,
        }
        stalls: dict[str, list[float]] = {name: [] for name in ways}
        wholes: dict[str, list[float]] = {name: [] for name in ways}
        for step in range(rounds + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                wait = way(step, tensors, Path(folder) / name)
                stall = time.perf_counter() - began
                wait()
                if step:  # the first asks for the copy's memory
                    stalls[name].append(stall)
                    wholes[name].append(time.perf_counter() - began)
    rows: list[dict[str, Value]] = [
        {
            "way": name,
            "stall_ms": round(1e3 * median(stalls[name])),
            "stall_max_ms": round(1e3 * max(stalls[name])),
            "whole_ms": round(1e3 * median(wholes[name])),
            "megabytes": round(sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6),
        }
        for name in ways
    ]
    stall_of, whole_of = ({name: median(times) for name, times in each.items()} for each in (stalls, wholes))
    figures = {
        "stall_background_over_foreground": stall_of["background"] / stall_of["foreground"],
        "stall_over_torch_async": stall_of["background"] / stall_of["torch async_save"],
        "whole_over_torch_async": whole_of["background"] / whole_of["torch async_save"],
    }
    return Result("checkpoint", rounds, rows, figures)


def _state(parameters: int) -> dict[str, Tensor]:
    """Return weights and moments, in matrices of the size that such a model has."""
    width = 1024
    count = max(1, parameters // width**2)
    generator = torch.Generator().manual_seed(0)
    return {
        f"{kind}.{index}": torch.randn(width, width, generator=generator)
        for kind in ("weight", "exp_avg", "exp_avg_sq")
        for index in range(count)
    }


class _Ours:
    def __init__(self, background: bool) -> None:
        self._background = background
        self._store: CheckpointStore | None = None

    def __call__(self, step: int, tensors: dict[str, Tensor], folder: Path) -> Callable[[], object]:
        self._store = self._store or CheckpointStore(folder, keep_last=1)
        self._store.save(step, tensors, {}, background=self._background)
        return self._store.finish


def _torch_save(step: int, tensors: dict[str, Tensor], folder: Path) -> Callable[[], object]:
    del step
    save(tensors, storage_writer=FileSystemWriter(folder, sync_files=True, overwrite=True))
    return lambda: None


def _torch_async_save(step: int, tensors: dict[str, Tensor], folder: Path) -> Callable[[], object]:
    del step
    writer = FileSystemWriter(folder, sync_files=True, overwrite=True)
    stager = DefaultStager(StagingOptions(*[torch.cuda.is_available()] * 4))
    future: Any = async_save(tensors, storage_writer=writer, async_stager=stager)
    return lambda: future.result(WAIT_SECONDS)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a process group of one, which torch's asynchronous writer asks for."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
