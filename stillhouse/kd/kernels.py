"""Which arithmetic computes a block of rows: compiled for the CPU or by Triton, else row chunks of torch's operations.

All take and give the same, to rounding, and each belongs to itself: a loss and its gradient are always of one
kernel. Bits differ between them, so a run says in its receipt which one it had.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from stillhouse.encodings import Encoding
from stillhouse.kd.divergences import FORWARD_KL, Divergence
from stillhouse.kd.rows import RowKernel, RowTerms, RowWeights, TeacherRows


class Kernel(Protocol):
    """Loss and gradient of a chunk of rows."""

    max_rows: int
    """Rows of the largest chunk that it takes."""

    def run(self, student: Tensor, teacher: TeacherRows | None, labels: Tensor, gradient: Tensor | None) -> RowTerms:
        """Return the terms of one chunk, and write its gradient: see `RowKernel.run`."""


def make_kernel(
    width: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    temperature: float,
    weights: RowWeights,
    divergence: Divergence = FORWARD_KL,
) -> Kernel:
    """Return the kernel for rows of one width, accumulated in `dtype` on `device`."""
    if dtype == torch.float32 and divergence.name == "forward_kl":
        match chosen(device):
            case "compiled":
                from stillhouse.kd.compiled.kernel import CompiledKernel

                return CompiledKernel(width, temperature=temperature, weights=weights)
            case "triton":
                from stillhouse.kd.device.kernel import DeviceKernel

                return DeviceKernel(width, temperature=temperature, weights=weights)
            case "row chunks":
                pass
    return RowKernel(width, dtype=dtype, device=device, temperature=temperature, weights=weights, divergence=divergence)


def chosen(device: torch.device) -> Literal["compiled", "triton", "row chunks"]:
    """Return what computes a float32 forward KL on a device."""
    if device.type == "cpu" and is_compiled():
        return "compiled"
    if device.type == "cuda" and is_sound(device):
        return "triton"
    return "row chunks"


@cache
def is_compiled() -> bool:
    """Whether float32 losses on CPU are compiled: numba, of the extra `student`, is there and works here."""
    try:
        numba = importlib.import_module("numba")
    except ImportError:  # also where it is there, and refuses this numpy
        return False
    return not numba.config.DISABLE_JIT  # somebody debugs; our loops as Python would take minutes


def compile_ahead(device: torch.device, encoding: Encoding | None, temperature: float) -> None:
    """Compile now what a loss over such answers takes, a second or two, rather than in the step that needs it.

    None stands for an answer that is not asked for: cross-entropy alone.
    """
    if chosen(device) == "compiled":
        from stillhouse.kd.compiled.kernel import compile_for

        compile_for(encoding, temperature)


@cache
def is_sound(device: torch.device) -> bool:
    """Whether Triton is there, runs on this GPU, and comes to what torch's own operations come to."""
    try:
        module = importlib.import_module("stillhouse.kd.device.soundness")
    except ImportError:  # torch's builds for other devices come without it
        return False
    sound: bool = module.agrees_with_row_chunks(device)
    return sound


def kernel_name(device: torch.device) -> str:
    """Return what computes a float32 forward KL on a device, for whoever asks why two runs differ in a bit."""
    name, package = chosen(device), {"compiled": "numba", "triton": "triton"}
    if name not in package:
        return name
    return f"{name} ({package[name]} {importlib.import_module(package[name]).__version__})"
