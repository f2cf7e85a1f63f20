"""Inputs of a loss, made by hypothesis: any size, scale, temperature, mask and labels, and -inf where it is borne."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Case:
    student: Tensor
    teacher: Tensor
    labels: Tensor
    mask: Tensor
    temperature: float
    alpha: float


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> Case:
    rows, width = draw(st.integers(1, 6)), draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 3.0, 30.0, 1e4]))
    student, teacher = (scale * torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    if draw(st.booleans()):
        student = teacher + 0.01 * student / scale
    labels = torch.randint(0, width, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = -100
    mask = torch.rand(rows, generator=generator) >= draw(st.sampled_from([0.0, 0.3, 1.0]))
    ruled_out = torch.rand(rows, width, generator=generator) < draw(st.sampled_from([0.0, 0.3]))
    ruled_out[torch.arange(rows), teacher.argmax(-1)] = False
    teacher = teacher.masked_fill(ruled_out, -torch.inf)
    # A student may rule out what its teacher rules out, unless the label stands there.
    both = ruled_out & (torch.rand(rows, width, generator=generator) < 0.5)
    both[torch.arange(rows), labels.clamp_min(0)] = False
    both[torch.arange(rows), student.argmax(-1)] = False
    student = student.masked_fill(both, -torch.inf)
    temperature = draw(st.sampled_from([0.05, 0.5, 1.0, 1.5, 2.0, 4.0, 100.0]))
    alpha = draw(st.sampled_from([0.0, 0.3, 1.0]))
    return Case(student.to(dtype), teacher.to(dtype), labels, mask, temperature, alpha)
