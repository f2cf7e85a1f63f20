"""Whether the programs run on a GPU at all, and right: asked once, before anybody learns from what they compute.

Triton needs a C compiler when it is first used, and a folder to write to; a driver or a GPU may be older than it knows.
"""

from __future__ import annotations

from typing import Final

import structlog
import torch
from torch import Tensor

from stillhouse.kd.device.kernel import BLOCK, DeviceKernel
from stillhouse.kd.rows import NO_LABEL, DenseRows, RowKernel, RowTerms, RowWeights, SampledRows, TeacherRows, TopKRows

ROWS: Final = 3
WIDTH: Final = 2 * BLOCK + 16
"""Two whole blocks and a piece of one."""
KEPT: Final = 8
TOLERANCE: Final = 1e-4
WEIGHTS: Final = RowWeights(0.3, 0.7)

_log = structlog.get_logger(__name__)


def agrees_with_row_chunks(device: torch.device) -> bool:
    """Compute a small block of every kind both ways; where they differ, or nothing runs, say why and answer False."""
    for temperature in (1.0, 2.0):
        for kind in ("none", "dense", "top_k", "sampled"):
            try:
                difference = _difference(kind, temperature, device)
            except Exception as error:  # noqa: BLE001 - whatever Triton, its compiler or the driver raise
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                _log.warning("triton_not_used", reason=reason, instead="row chunks", device=str(device))
                return False
            if not difference <= TOLERANCE:
                reason = f"{kind} answers at T = {temperature} differ by {difference:.1e}"
                _log.warning("triton_not_used", reason=reason, instead="row chunks", device=str(device))
                return False
    return True


def _difference(kind: str, temperature: float, device: torch.device) -> float:
    """Return the largest difference of a term or of the gradient, relative to the gradient's largest."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(ROWS, WIDTH, generator=generator).to(device) for _ in range(2))
    labels = torch.tensor([1, NO_LABEL, WIDTH - 1], device=device)
    taught = _rows(kind, teacher, temperature)
    one, other = torch.empty_like(student), torch.empty_like(student)
    ours = DeviceKernel(WIDTH, temperature=temperature, weights=WEIGHTS).run(student, taught, labels, one)
    chunks = RowKernel(WIDTH, dtype=torch.float32, device=device, temperature=temperature, weights=WEIGHTS)
    theirs = chunks.run(student, taught, labels, other)
    apart = [(one - other).abs().max() / other.abs().max()]
    apart += [(a - b).abs().max() / (1 + b.abs().max()) for a, b in zip(_values(ours), _values(theirs), strict=True)]
    # Not `max`, which may leave out a NaN.
    return float(torch.stack([each.double() for each in apart]).amax())


def _rows(kind: str, teacher: Tensor, temperature: float) -> TeacherRows | None:
    log_probs = torch.log_softmax(teacher / temperature, -1)
    kept = log_probs.topk(KEPT)
    match kind:
        case "dense":
            return DenseRows(teacher)
        case "top_k":
            tail = log_probs.scatter(1, kept.indices, -torch.inf).logsumexp(1, keepdim=True)
            return TopKRows(kept.indices, kept.values, tail)
        case "sampled":
            weights = torch.full_like(kept.values, 1 / KEPT)
            return SampledRows(kept.indices, weights, torch.ones_like(weights[:, :1]))
        case _:
            return None


def _values(terms: RowTerms) -> tuple[Tensor, ...]:
    return terms.cross_entropy, terms.kl, terms.student_log_normalizer, terms.teacher_log_normalizer
