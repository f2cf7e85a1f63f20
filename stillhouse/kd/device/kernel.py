"""From tensors on a GPU to the program over rows and back."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from stillhouse.device_rows.layout import flat
from stillhouse.kd.device.rows import DENSE, DRAWS, HEAD, NOTHING, learn_rows
from stillhouse.kd.rows import DenseRows, RowTerms, RowWeights, SampledRows, TeacherRows, TopKRows

BLOCK: Final = 2048
"""Logits of a block: 16 for each of a program's 128 threads, in registers."""
NAMED_BLOCK: Final = 512
"""Ids of a head, or of draws, that a program takes at once."""
LAUNCH: Final[dict[str, Any]] = {"BLOCK": BLOCK, "NAMED_BLOCK": NAMED_BLOCK, "num_warps": 4, "enable_fp_fusion": True}

CHUNK_ELEMENTS: Final = 2**27
"""Logits of a chunk: what hidden states are rebuilt to at once, 512 MiB of float32, and few launches for all else."""


class DeviceKernel:
    """The fused loss and gradient of rows on a GPU: the forward KL, or cross-entropy alone, accumulated in float32.

    It keeps to what `RowKernel` promises; its bits differ from that one's.
    """

    def __init__(self, width: int, *, temperature: float, weights: RowWeights) -> None:
        self.max_rows = max(1, CHUNK_ELEMENTS // max(1, width))
        self._width = width
        self._temperature = temperature
        self._weights = weights

    def run(self, student: Tensor, teacher: TeacherRows | None, labels: Tensor, gradient: Tensor | None) -> RowTerms:
        """Return the terms of one chunk, float64, and write its gradient: see `RowKernel.run`."""
        student = flat(student)
        rows = len(student)
        terms = torch.empty(rows, 4, dtype=torch.float64, device=student.device)
        kind, taught, named, values, rest, is_named = NOTHING, student, labels, terms, terms, labels
        match teacher:
            case DenseRows(logits):
                kind, taught = DENSE, flat(logits)
            case TopKRows(token_ids, log_probs, log_tail):
                kind, named, values, rest = HEAD, token_ids.contiguous(), log_probs.contiguous(), log_tail.contiguous()
                is_named = torch.zeros(rows, self._width, dtype=torch.uint8, device=student.device)
                is_named.scatter_(1, named, 1)
            case SampledRows(token_ids, weights, entropy):
                kind, named, values, rest = DRAWS, token_ids.contiguous(), weights.contiguous(), entropy.contiguous()
            case None:
                pass
        target = student if gradient is None else flat(gradient)
        learn_rows[(rows,)](
            student,
            student.stride(0),
            taught,
            taught.stride(0),
            labels.contiguous(),
            named,
            values,
            rest,
            is_named,
            target,
            target.stride(0),
            terms,
            self._width,
            named.shape[1] if kind in (HEAD, DRAWS) else 0,
            1.0 / self._temperature,
            self._weights.cross_entropy,
            0.0 if teacher is None else self._weights.kl,
            KIND=kind,
            TEMPERED=self._temperature != 1,
            WRITES=gradient is not None,
            **LAUNCH,
        )
        if gradient is not None and target is not gradient:
            gradient.copy_(target)
        return RowTerms(*terms.unbind(1))
