"""From tensors on a GPU to the programs over a teacher's rows and back.

Shapes: P rows, N logits each, K ids, S draws.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

from stillhouse.device_rows.layout import flat
from stillhouse.device_rows.programs import choose_rows, describe_rows, draw_rows

LAUNCH: Final[dict[str, Any]] = {"BLOCK": 4096, "num_warps": 8, "enable_fp_fusion": False}
"""Not fused: a product rounded by itself is what torch's operations go on with, and a draw follows from it."""
NAMED_BLOCK: Final = 512
"""Named ids, or draws, that a program takes at once."""


def top_k_ids(x_PN: Tensor, k: int) -> Tensor:
    """Return what `stillhouse.head_and_tail.top_k_ids` returns."""
    x_PN = flat(x_PN)
    values_PK = x_PN.topk(k, dim=1).values
    last_P1 = values_PK[:, -1:]
    ids_PK = torch.empty(len(x_PN), k, dtype=torch.int64, device=x_PN.device)
    num_above_P = (values_PK > last_P1).sum(dim=1)
    if len(x_PN):
        choose_rows[(len(x_PN),)](
            x_PN, x_PN.stride(0), last_P1.float().contiguous(), num_above_P, ids_PK, x_PN.shape[1], k, **LAUNCH
        )
    order_PK = x_PN.gather(1, ids_PK).argsort(dim=1, descending=True, stable=True)
    return ids_PK.gather(1, order_PK)


def statistics(x_PN: Tensor, ids_PK: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """Return the four statistics `[P]` of `stillhouse.head_and_tail.head_and_tail`."""
    x_PN, ids_PK = flat(x_PN), ids_PK.contiguous()
    is_named_PN = torch.zeros(x_PN.shape, dtype=torch.uint8, device=x_PN.device).scatter_(1, ids_PK, 1)
    result_P4 = torch.empty(len(x_PN), 4, device=x_PN.device)
    if len(x_PN):
        describe_rows[(len(x_PN),)](
            x_PN,
            x_PN.stride(0),
            ids_PK,
            is_named_PN,
            result_P4,
            x_PN.shape[1],
            ids_PK.shape[1],
            1.0 / temperature,
            TEMPERED=temperature != 1,
            NAMED_BLOCK=NAMED_BLOCK,
            **LAUNCH,
        )
    return result_P4.unbind(1)


def draw(x_PN: Tensor, uniforms_PS: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return ids `[P, S]` int64 and entropies `[P]` float32, as `stillhouse.draws.draw` does."""
    x_PN, device = flat(x_PN), x_PN.device
    (rows, width), draws = x_PN.shape, uniforms_PS.shape[1]
    starts, widths, size = _levels(width, device)
    ids_PS = torch.empty(rows, draws, dtype=torch.int64, device=device)
    entropy_P = torch.empty(rows, device=device)
    if rows:
        draw_rows[(rows,)](
            x_PN,
            x_PN.stride(0),
            torch.full((1,), temperature, dtype=torch.float64, device=device),
            uniforms_PS.to(device).contiguous(),
            torch.empty(rows, size, dtype=torch.float64, device=device),
            size,
            starts,
            widths,
            len(widths),
            torch.empty(rows, width, dtype=torch.float64, device=device),
            ids_PS,
            entropy_P,
            width,
            draws,
            DRAWS_BLOCK=NAMED_BLOCK,
            **LAUNCH,
        )
    return ids_PS, entropy_P


@lru_cache(maxsize=16)
def _levels(width: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Return where the levels of a tree over so many leaves begin, how wide they are, and what they come to."""
    widths = [width]
    while widths[-1] > 1:
        widths.append((widths[-1] + 1) // 2)
    widths_L = torch.tensor(widths, device=device, dtype=torch.int32)
    starts_L = torch.tensor([sum(widths[:level]) for level in range(len(widths))], device=device, dtype=torch.int32)
    return starts_L, widths_L, sum(widths)
