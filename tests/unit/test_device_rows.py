"""What a GPU computes of a teacher's rows comes to what torch's own operations come to, by Triton's interpreter."""

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

from stillhouse import draws, head_and_tail
from stillhouse.device_rows import choice

if importlib.util.find_spec("triton") is None:
    pytest.skip("NOT TESTED: the programs for a GPU; triton is not installed", allow_module_level=True)

from stillhouse.device_rows import encoding

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BLOCK = encoding.LAUNCH["BLOCK"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # numpy speaks of a difference of infinities, where a GPU says nothing.
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def afresh() -> Iterator[None]:
    choice.device_programs.cache_clear()
    yield
    choice.device_programs.cache_clear()


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """Rows of several blocks whose levels differ, with equals among them, and ids that a teacher rules out."""
    width = draw(st.sampled_from([1, 2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = 3 * torch.randn(2, width, generator=generator)
    if draw(st.booleans()):
        x = x.round()
    for start in range(0, width, BLOCK):
        x[:, start : start + BLOCK] += draw(st.sampled_from([0.0, 15.0, 60.0, -300.0, 1e4]))
    if draw(st.booleans()):
        x[:, 1::2] = -torch.inf
    return x.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


@given(x=rows(), k=st.integers(1, 700))
@settings(max_examples=60, deadline=None)
def test_the_largest_and_among_equals_the_lower_ids(x: Tensor, k: int) -> None:
    k = min(k, x.shape[1])
    assert torch.equal(encoding.top_k_ids(x, k), head_and_tail.top_k_ids_by_torch(x, k))


def test_plus_and_minus_zero_are_equals() -> None:
    x = torch.tensor([[-1.0, 0.0, -0.0, 0.0, -0.0]])
    assert encoding.top_k_ids(x, 3).tolist() == [[1, 2, 3]]


@given(x=rows(), k=st.integers(1, 700), temperature=st.sampled_from([0.05, 1.0, 2.0, 50.0]))
@settings(max_examples=60, deadline=None)
def test_what_the_named_and_all_others_weigh(x: Tensor, k: int, temperature: float) -> None:
    ids = head_and_tail.top_k_ids_by_torch(x, min(k, x.shape[1]))
    ours = encoding.statistics(x, ids, temperature)
    theirs = head_and_tail.statistics_by_torch(x, ids, temperature)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)


def test_the_mass_of_a_tail_keeps_its_digits_beside_a_head_that_weighs_nearly_all() -> None:
    x = torch.zeros(1, 3 * BLOCK)
    x[0, 5] = 60.0
    (_, tail, _, cooled_tail) = encoding.statistics(x, torch.tensor([[5]]), 2.0)
    assert tail.item() == pytest.approx(np.log(3 * BLOCK - 1) - 60, rel=1e-6)
    assert cooled_tail.item() == pytest.approx(np.log(3 * BLOCK - 1) - 30, rel=1e-6)


@given(
    x=rows(), num=st.sampled_from([1, 50, 513]), temperature=st.sampled_from([0.7, 1.0, 3.0]), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_the_same_uniform_numbers_draw_the_same_ids(x: Tensor, num: int, temperature: float, seed: int) -> None:
    u = torch.rand(2, num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u[0, 0] = 1 - 2.0**-53
    (ids, entropy), (their_ids, their_entropy) = (
        encoding.draw(x, u, temperature),
        draws.draw_by_torch(x, u, temperature),
    )
    assert torch.equal(ids, their_ids)
    torch.testing.assert_close(entropy, their_entropy, rtol=1e-6, atol=1e-6)


def test_a_row_has_the_same_bits_whatever_stands_beside_it() -> None:
    x = 3 * torch.randn(4, BLOCK + 9, generator=torch.Generator().manual_seed(0))
    u = torch.rand(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = encoding.top_k_ids(x, 5)
    whole = (*encoding.statistics(x, ids, 2.0), *encoding.draw(x, u, 2.0))
    part = (*encoding.statistics(x[2:3], ids[2:3], 2.0), *encoding.draw(x[2:3], u[2:3], 2.0))
    assert all(torch.equal(one[2:3], other) for one, other in zip(whole, part, strict=True))


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stillhouse.device_rows.encoding import LAUNCH, NAMED_BLOCK
from stillhouse.device_rows.programs import choose_rows, describe_rows, draw_rows

launch = dict(LAUNCH)
block = {"BLOCK": launch.pop("BLOCK")}
integers = ("stride", "width", "k", "num_named", "tree_size", "num_levels", "num_draws")
types = {"logits": f"*{sys.argv[3]}", "per_t": "fp32", "lasts": "*fp32", "num_above": "*i64", "chosen": "*i64"}
types |= {name: "i32" for name in integers} | {"named": "*i64", "is_named": "*u8", "statistics": "*fp32"}
types |= {name: "*fp64" for name in ("temperatures", "uniforms", "trees", "surprises")}
types |= {"starts": "*i32", "widths": "*i32", "drawn": "*i64", "entropies": "*fp32"}
programs = [(choose_rows, block), (draw_rows, {**block, "DRAWS_BLOCK": NAMED_BLOCK})]
programs += [(describe_rows, {**block, "NAMED_BLOCK": NAMED_BLOCK, "TEMPERED": one}) for one in (False, True)]
for program, constants in programs:
    signature = {name: types.get(name, "constexpr") for name in program.arg_names}
    source = ASTSource(program, signature=signature, constexprs=constants)
    made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=launch)
    assert made.asm["cubin"]
"""


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_its_programs_compile_for_a_gpu_that_is_not_here(tmp_path: Path, dtype: str, capability: int) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    argv = [sys.executable, "-W", "error", "-c", COMPILE, str(capability), "32", dtype]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("lay", [lambda x: torch.nn.functional.pad(x, (0, 9))[:, :50], lambda x: x.T.contiguous().T])
def test_logits_may_lie_in_memory_as_they_like(lay: Any) -> None:
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    ids = encoding.top_k_ids(x, 4)
    assert torch.equal(encoding.top_k_ids(lay(x), 4), ids)
    ours, plain = encoding.statistics(lay(x), ids, 2.0), encoding.statistics(x, ids, 2.0)
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))


def test_no_rows_are_no_rows() -> None:
    x = torch.empty(0, 50)
    assert encoding.top_k_ids(x, 4).shape == (0, 4)
    assert encoding.statistics(x, torch.empty(0, 4, dtype=torch.int64), 2.0)[0].shape == (0,)
    assert encoding.draw(x, torch.empty(0, 9, dtype=torch.float64), 1.0)[0].shape == (0, 9)


@pytest.mark.usefixtures("afresh")
def test_what_is_sound_is_chosen_on_a_gpu_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = choice.largest_difference
    # Its programs are interpreted, so that what is asked of a GPU is computed here.
    monkeypatch.setattr(choice, "largest_difference", lambda programs, _device: difference(programs, CPU))
    assert choice.device_programs(CUDA) is encoding
    assert choice.programs_name(CUDA).startswith("triton 3.")
    assert choice.device_programs(CPU) is None
    assert choice.programs_name(CPU) == "torch"


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_what_differs_is_not_used_and_a_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: float
) -> None:
    statistics, difference = encoding.statistics, choice.largest_difference
    monkeypatch.setattr(choice, "largest_difference", lambda programs, _device: difference(programs, CPU))
    monkeypatch.setattr(encoding, "statistics", lambda *args: tuple(one + wrong for one in statistics(*args)))
    assert choice.device_programs(CUDA) is None
    assert "triton_not_used" in capsys.readouterr().out


@pytest.mark.usefixtures("afresh")
def test_what_cannot_run_is_not_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object) -> float:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one via CC environment variable")

    monkeypatch.setattr(choice, "largest_difference", fails)
    assert choice.device_programs(CUDA) is None
    said = capsys.readouterr().out
    assert "Failed to find C compiler." in said
    assert "torch's operations" in said


@pytest.mark.usefixtures("afresh")
def test_without_triton_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("stillhouse.device_rows.choice.importlib.import_module", is_missing)
    assert choice.programs_name(CUDA) == "torch"
