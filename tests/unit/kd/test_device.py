"""The kernel for a GPU, its programs run by numpy: used only where it comes to what torch's own operations come to.

What it shares with the other kernels is tested with all of them, wherever a module has the fixture `each_kernel`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.kd import kernels
from stillhouse.kd.rows import DenseRows, RowKernel, RowTerms, RowWeights

if importlib.util.find_spec("triton") is None:
    pytest.skip("NOT TESTED: the kernel for a GPU; triton is not installed", allow_module_level=True)

from stillhouse.kd.device import kernel as device_kernel
from stillhouse.kd.device import soundness
from stillhouse.kd.device.kernel import BLOCK, DeviceKernel

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
WEIGHTS = RowWeights(0.3, 0.7)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # numpy speaks of a difference of infinities, where a GPU says nothing.
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def afresh() -> Iterator[None]:
    kernels.is_sound.cache_clear()
    yield
    kernels.is_sound.cache_clear()


@st.composite
def sides(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rows of several blocks, whose levels differ from block to block, so that the largest logit rises on the way."""
    width = draw(st.sampled_from([1, 5, BLOCK, BLOCK + 1, 2 * BLOCK + 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    student, teacher = (3 * torch.randn(2, width, generator=generator) for _ in range(2))
    for side in (student, teacher):
        for start in range(0, width, BLOCK):
            side[:, start : start + BLOCK] += draw(st.sampled_from([0.0, 15.0, 60.0, -300.0, 1e4, -1e4]))
    if width > BLOCK and draw(st.booleans()):
        teacher[:, :BLOCK] = -torch.inf
        if draw(st.booleans()):
            student[:, :BLOCK] = -torch.inf
    return student, teacher


@given(sides=sides(), temperature=st.sampled_from([0.05, 1.0, 2.0, 50.0]))
@settings(max_examples=60, deadline=None)
def test_rows_of_several_blocks_of_any_levels(sides: tuple[Tensor, Tensor], temperature: float) -> None:
    student, teacher = sides
    width = student.shape[1]
    labels = torch.tensor([width - 1, -100])
    ours, exact = torch.empty(2, width), torch.empty(2, width, dtype=torch.float64)
    terms = DeviceKernel(width, temperature=temperature, weights=WEIGHTS).run(student, DenseRows(teacher), labels, ours)
    chunks = RowKernel(width, dtype=torch.float64, device=CPU, temperature=temperature, weights=WEIGHTS)
    expected = chunks.run(student.double(), DenseRows(teacher.double()), labels, exact)
    assert float((ours.double() - exact).abs().max()) <= 2e-5
    for name in ("cross_entropy", "kl", "student_log_normalizer", "teacher_log_normalizer"):
        one, other = getattr(terms, name), getattr(expected, name)
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5, msg=f"{name}: {one} and {other}")


@pytest.mark.usefixtures("afresh")
def test_what_is_sound_is_chosen_on_a_gpu_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its programs are interpreted, so that what is asked of a GPU is computed here.
    monkeypatch.setattr(soundness, "agrees_with_row_chunks", lambda _device: agrees(CPU))
    assert kernels.chosen(CUDA) == "triton"
    assert kernels.kernel_name(CUDA).startswith("triton (triton 3.")
    options: dict[str, Any] = {"temperature": 1.0, "weights": WEIGHTS, "device": CUDA}
    assert isinstance(kernels.make_kernel(9, dtype=torch.float32, **options), DeviceKernel)
    assert isinstance(kernels.make_kernel(9, dtype=torch.float64, **options), RowKernel)
    assert kernels.chosen(torch.device("meta")) == "row chunks"


agrees = soundness.agrees_with_row_chunks


def test_it_agrees_with_the_row_chunks() -> None:
    assert agrees(CPU)


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_what_differs_is_not_used_and_a_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: float
) -> None:
    run = DeviceKernel.run

    def wrongly(*args: Any) -> RowTerms:
        terms = run(*args)
        args[-1].mul_(1 + wrong)
        return terms

    monkeypatch.setattr(DeviceKernel, "run", wrongly)
    assert not agrees(CPU)
    assert "triton_not_used" in capsys.readouterr().out


def test_what_cannot_run_is_not_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class NoCompiler:
        def __getitem__(self, _grid: object) -> Any:
            raise RuntimeError("Failed to find C compiler.\nPlease specify one via CC environment variable")

    monkeypatch.setattr(device_kernel, "learn_rows", NoCompiler())
    assert not agrees(CPU)
    said = capsys.readouterr().out
    assert "Failed to find C compiler." in said
    assert "row chunks" in said


@pytest.mark.usefixtures("afresh")
def test_without_triton_the_row_chunks_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("stillhouse.kd.kernels.importlib.import_module", is_missing)
    assert kernels.kernel_name(CUDA) == "row chunks"


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stillhouse.kd.device.kernel import LAUNCH
from stillhouse.kd.device.rows import learn_rows

launch = dict(LAUNCH)
blocks = {name: launch.pop(name) for name in ("BLOCK", "NAMED_BLOCK")}
types = {name: "i32" for name in ("width", "num_named", "student_stride", "teacher_stride", "gradient_stride")}
types |= {name: "fp32" for name in ("per_t", "label_weight", "kl_weight")}
types |= {side: f"*{sys.argv[3]}" for side in ("student", "teacher", "gradient")}
types |= {"labels": "*i64", "named": "*i64", "values": "*fp32", "rest": "*fp32", "is_named": "*u8", "terms": "*fp64"}
signature = {name: types.get(name, "constexpr") for name in learn_rows.arg_names}
for kind in range(4):
    for tempered in (False, True):
        for writes in (False, True):
            constants = {"KIND": kind, "TEMPERED": tempered, "WRITES": writes, **blocks}
            source = ASTSource(learn_rows, signature=signature, constexprs=constants)
            made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), int(sys.argv[2])), options=launch)
            assert made.asm["cubin"]
"""


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_its_programs_compile_for_a_gpu_that_is_not_here(tmp_path: Path, dtype: str, capability: int) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    argv = [sys.executable, "-W", "error", "-c", COMPILE, str(capability), "32", dtype]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "one row for all"])
def test_logits_may_lie_in_memory_as_they_like(dtype: torch.dtype, layout: str) -> None:
    rows, width = 3, 50
    made = [torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(2)]
    lay = {
        "rows apart": lambda x: torch.nn.functional.pad(x, (0, 9))[:, :width],
        "columns apart": lambda x: x.repeat_interleave(2, 1)[:, ::2],
        "one row for all": lambda x: x[:1].expand(rows, -1),
    }[layout]
    student, teacher = map(lay, made)
    labels = torch.tensor([0, -100, 7])
    turned, plain = torch.full((width, rows), torch.nan).T, torch.empty(rows, width)
    kernel = DeviceKernel(width, temperature=2.0, weights=WEIGHTS)
    kernel.run(student, DenseRows(teacher), labels, turned)
    kernel.run(student.float().contiguous(), DenseRows(teacher.float().contiguous()), labels, plain)
    assert torch.equal(turned, plain)
