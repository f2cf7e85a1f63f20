"""The kernel takes one path on a CPU and another where looking at a value is dear; both give the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillhouse.kd.rows import DenseRows, RowKernel, RowTerms, RowWeights

ROWS, V = 5, 40


def run(kernel: RowKernel, student: Tensor, teacher: Tensor) -> tuple[RowTerms, Tensor]:
    gradient = torch.empty_like(student)
    return kernel.run(student, DenseRows(teacher), torch.tensor([0, -100, 2, 3, 4]), gradient), gradient


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("ruled_out", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_path_of_an_accelerator_gives_what_the_cpu_path_gives(
    temperature: float, ruled_out: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(ROWS, V, generator=generator).to(dtype) for _ in range(2))
    teacher[torch.rand(ROWS, V, generator=generator) < ruled_out] = -torch.inf
    kernels = [
        RowKernel(V, dtype=torch.float32, device=student.device, temperature=temperature, weights=RowWeights(0.1, 0.2))
        for _ in range(2)
    ]
    kernels[1]._optimistic = False
    (terms, gradient), (careful_terms, careful_gradient) = (run(kernel, student, teacher) for kernel in kernels)
    torch.testing.assert_close(careful_gradient, gradient, rtol=0, atol=0)
    torch.testing.assert_close(careful_terms.kl, terms.kl)
    torch.testing.assert_close(careful_terms.cross_entropy, terms.cross_entropy, rtol=0, atol=0)
    assert bool(terms.kl.isfinite().all())


@pytest.mark.parametrize(("width", "elements", "rows"), [(10, 100, 10), (33, 100, 3), (1000, 100, 1)])
def test_a_chunk_holds_whole_rows_and_at_least_one(width: int, elements: int, rows: int) -> None:
    kernel = RowKernel(
        width,
        dtype=torch.float32,
        device=torch.device("cpu"),
        temperature=1.0,
        weights=RowWeights(1.0, 1.0),
        chunk_elements=elements,
    )
    assert kernel.max_rows == rows
