"""Whether the programs compute a teacher's rows: where Triton runs, and comes to what torch's own operations come to.

Asked once for each device, before anybody learns from what they compute. Which of the two it was decides the low bits
of an answer, so its name belongs to what a fingerprint covers.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Final

import structlog
import torch

WIDTH: Final = 2 * 4096 + 17
"""Two whole blocks and a piece of one."""
ROWS, KEPT, DRAWS = 3, 40, 70
TOLERANCE: Final = 1e-4

_log = structlog.get_logger(__name__)


@cache
def device_programs(device: torch.device) -> ModuleType | None:
    """Return `device_rows.encoding` where it is to compute rows on a device, else None, and a warning says why.

    Triton needs a C compiler when it is first used, and a folder to write to; a driver or a GPU may be older than it
    knows.
    """
    if device.type != "cuda":
        return None
    try:
        programs = importlib.import_module("stillhouse.device_rows.encoding")
    except ImportError:  # torch's builds for other devices come without Triton
        return None
    try:
        difference = largest_difference(programs, device)
    except Exception as error:  # noqa: BLE001 - whatever Triton, its compiler or the driver raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    else:
        if difference <= TOLERANCE:
            return programs
        reason = f"they differ from torch's own operations by {difference:.1e}"
    _log.warning("triton_not_used", reason=reason, instead="torch's operations", device=str(device))
    return None


def programs_name(device: torch.device) -> str:
    """Return what computes rows on a device, by name and version."""
    if device_programs(device) is None:
        return "torch"
    return f"triton {importlib.import_module('triton').__version__}"


def largest_difference(programs: ModuleType, device: torch.device) -> float:
    """Compute a small block both ways; infinity where they name different ids."""
    from stillhouse import draws, head_and_tail

    generator = torch.Generator().manual_seed(0)
    # Of float16 and coarse, so that many are equal.
    x_PN = (3 * torch.randn(ROWS, WIDTH, generator=generator)).half().to(device)
    uniforms_PS = torch.rand(ROWS, DRAWS, generator=generator, dtype=torch.float64)
    apart: list[torch.Tensor] = []
    for temperature in (1.0, 2.0):
        ids_PK = programs.top_k_ids(x_PN, KEPT)
        drawn_PS, entropy_P = programs.draw(x_PN, uniforms_PS, temperature)
        theirs_PK, (theirs_PS, their_entropy_P) = (
            head_and_tail.top_k_ids_by_torch(x_PN, KEPT),
            draws.draw_by_torch(x_PN, uniforms_PS, temperature),
        )
        if not (torch.equal(ids_PK, theirs_PK) and torch.equal(drawn_PS, theirs_PS)):
            return float("inf")
        ours = (*programs.statistics(x_PN, ids_PK, temperature), entropy_P)
        theirs = (*head_and_tail.statistics_by_torch(x_PN, ids_PK, temperature), their_entropy_P)
        apart += [(one - other).abs().max() for one, other in zip(ours, theirs, strict=True)]
    # Not Python's `max`, which may leave out a NaN.
    return float(torch.stack(apart).amax())
