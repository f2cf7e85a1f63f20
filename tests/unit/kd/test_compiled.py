"""The compiled kernel: right to float32's last digits, the same bits on any number of threads, and as blind to nothing.

What it shares with the row chunks is tested with both, wherever a module has the fixture `each_kernel`.
"""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.encode import encode_logits
from stillhouse.encodings import Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.kd import kd_loss_and_gradient, kernels
from stillhouse.kd.rows import RowKernel, RowWeights
from tests.asked import every_position
from tests.unit.kd.conftest import Reference

if importlib.util.find_spec("numba") is None:
    pytest.skip("NOT TESTED: the compiled kernel; numba is not installed", allow_module_level=True)

from stillhouse.kd.compiled import rows as compiled_rows
from stillhouse.kd.compiled.kernel import CompiledKernel
from stillhouse.kd.compiled.vectors import exponential, largest

BLOCK = compiled_rows.BLOCK
INF = math.inf
WEIGHTS = RowWeights(0.5, 0.5)


def logits(rows: int, width: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def answer(encoding: Encoding | None, teacher: Tensor, temperature: float) -> Any:
    if encoding is None:
        return teacher
    return encode_logits(
        [teacher],
        encoding,
        sequence=every_position(len(teacher)),
        temperature=temperature,
        vocabulary_size=teacher.shape[1],
    )


ANSWERS: dict[str, Encoding | None] = {"dense": None, "top_k": TopK(8, "float32"), "sampled": Sampled(20)}


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def exponentials(x: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([exponential(value) for value in x], dtype=np.float32)


def test_the_exponential_is_right_to_a_unit_in_the_last_place() -> None:
    x = np.concatenate(
        [np.linspace(-87.33, 88.0, 100_000), -np.geomspace(1e-38, 87.33, 50_000), np.geomspace(1e-38, 88, 50_000)]
    ).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert float((np.abs(exponentials(x) - exact) / np.spacing(exact.astype(np.float32))).max()) < 0.89


def test_the_exponential_of_what_is_not_in_its_range() -> None:
    x = np.array([0.0, -0.0, -INF, -1e30, -87.7, 89.0, 1e30, INF, math.nan, -math.nan], dtype=np.float32)
    got = exponentials(x)
    assert got[:5].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert bool((got[5:8] == exponential(np.float32(88.0))).all())
    assert bool(np.isnan(got[8:]).all())


@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
@settings(deadline=None)  # the first is compiled
def test_the_largest_of_any_floats(values: list[float]) -> None:
    assert largest(np.array(values, dtype=np.float32)) == np.float32(max(values))


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
def test_bits_depend_on_no_number_of_threads_and_no_neighbours(
    threads: Callable[[int], None], kind: str, temperature: float
) -> None:
    width = 3 * BLOCK + 17
    student, labels = logits(80, width), torch.arange(80) * 7
    labels[3::5] = -100
    teacher = answer(ANSWERS[kind], logits(80, width, 1), temperature)
    options: dict[str, Any] = {"temperature": temperature, "alpha": 0.4}
    threads(1)
    one = kd_loss_and_gradient(student, teacher, labels, **options)
    for number in (2, 3, 4):
        threads(number)
        more = kd_loss_and_gradient(student, teacher, labels, **options)
        assert (more.loss, more.cross_entropy, more.kl) == (one.loss, one.cross_entropy, one.kl)
        assert torch.equal(more.gradient, one.gradient)
    mask = torch.zeros(80, dtype=torch.bool)
    mask[[0, 31, 32, 79]] = True
    options |= {"num_valid": 80, "num_labelled": int((labels != -100).sum())}
    some = kd_loss_and_gradient(student, teacher, labels, mask=mask, **options)
    assert torch.equal(some.gradient[mask], one.gradient[mask])


def test_work_for_threads_is_shared_out_once_each(threads: Callable[[int], None]) -> None:
    threads(4)
    kernel = CompiledKernel(2**17, temperature=1.0, weights=WEIGHTS)
    seen: list[int] = []
    kernel._over_rows(lambda first, last: seen.extend(range(first, last)), 50)
    assert sorted(seen) == list(range(50))
    with pytest.raises(ZeroDivisionError):
        kernel._over_rows(lambda first, _: 1 // min(first, 0), 50)  # type: ignore[arg-type]  # it raises


@st.composite
def wide_rows(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of several blocks, whose levels differ from block to block, so that shifts must rise, or begin at -inf."""
    blocks, rest = draw(st.integers(1, 3)), draw(st.sampled_from([1, 7, BLOCK - 1]))
    width, seed = (blocks - 1) * BLOCK + rest + 1, draw(st.integers(0, 2**31))
    student, teacher = logits(2, width, seed), logits(2, width, seed + 1)
    for side in (student, teacher):
        for n in range(blocks):
            side[:, n * BLOCK : (n + 1) * BLOCK] += draw(st.sampled_from([0.0, 15.0, 60.0, -300.0, 1e4, -1e4]))
    if blocks > 1 and draw(st.booleans()):
        teacher[:, :BLOCK] = -INF
        if draw(st.booleans()):
            student[:, :BLOCK] = -INF
    return student, teacher, torch.tensor([width - 1, -100])


@given(sides=wide_rows(), temperature=st.sampled_from([0.05, 1.0, 2.0, 50.0]), alpha=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=150, deadline=None)
def test_rows_of_several_blocks_of_any_levels(
    reference: Reference, sides: tuple[Tensor, Tensor, Tensor], temperature: float, alpha: float
) -> None:
    student, teacher, labels = sides
    loss, gradient = reference(student, teacher, labels, temperature=temperature, alpha=alpha)
    result = kd_loss_and_gradient(student, teacher, labels, temperature=temperature, alpha=alpha)
    assert result.loss == pytest.approx(loss, rel=2e-5, abs=2e-5 * max(1.0, temperature**2))
    bound = max(1.0, temperature, float(gradient.abs().max()))
    assert float((result.gradient.double() - gradient).abs().max()) <= 2e-5 * bound


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("bad", [math.nan, INF, -math.nan])
@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 5])
def test_a_logit_that_has_no_softmax_is_seen_wherever_it_stands(
    kind: str, temperature: float, bad: float, place: int
) -> None:
    width = 2 * BLOCK + 6
    student, teacher = logits(3, width), answer(ANSWERS[kind], logits(3, width, 1), temperature)
    student[1, place] = bad
    with pytest.raises(ValueError, match="row 1 of the student's logits has no finite log-normaliser"):
        kd_loss_and_gradient(student, teacher, [0, 1, 2], temperature=temperature, alpha=0.5)
    if kind == "dense":
        with pytest.raises(ValueError, match="row 1 of the teacher's logits has no finite log-normaliser"):
            kd_loss_and_gradient(teacher, student, [0, 1, 2], temperature=temperature, alpha=0.5)


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 2.5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_it_comes_to_what_the_row_chunks_come_to(
    monkeypatch: pytest.MonkeyPatch, kind: str, temperature: float, alpha: float
) -> None:
    student, labels = logits(9, 5000), torch.tensor([1, -100, 4999, 0, 7, -100, 3, 2048, 2047])
    teacher = answer(ANSWERS[kind], logits(9, 5000, 1), temperature)
    mask = torch.arange(9) % 4 != 2
    options: dict[str, Any] = {"temperature": temperature, "alpha": alpha, "mask": mask}
    ours = kd_loss_and_gradient(student, teacher, labels, **options)
    monkeypatch.setattr(kernels, "is_compiled", lambda: False)
    chunks = kd_loss_and_gradient(student, teacher, labels, **options)
    assert ours.loss == pytest.approx(chunks.loss, rel=1e-5)
    torch.testing.assert_close(ours.gradient, chunks.gradient, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "turned", "one row for all"])
def test_logits_may_lie_in_memory_as_they_like(dtype: torch.dtype, layout: str) -> None:
    rows, width = 6, 500
    lay: dict[str, Callable[[Tensor], Tensor]] = {
        "rows apart": lambda x: torch.nn.functional.pad(x, (0, 9))[:, :width],
        "columns apart": lambda x: x.repeat_interleave(2, 1)[:, ::2],
        "turned": lambda x: x.T.contiguous().T,
        "one row for all": lambda x: x[:1].expand(rows, -1),
    }
    student, teacher = (lay[layout](logits(rows, width, seed).to(dtype)) for seed in range(2))
    out = torch.full((width, rows), math.nan).T
    options: dict[str, Any] = {"temperature": 2.0, "alpha": 0.5}
    result = kd_loss_and_gradient(student, teacher, [1] * rows, out=out, **options)
    plain = kd_loss_and_gradient(student.float().contiguous(), teacher.float().contiguous(), [1] * rows, **options)
    assert result.loss == plain.loss
    assert torch.equal(result.gradient, plain.gradient)


def test_a_vocabulary_of_one_and_one_of_very_many() -> None:
    one = kd_loss_and_gradient(logits(2, 1), logits(2, 1, 1), [0, -100], temperature=2.0, alpha=0.5)
    assert one.loss == pytest.approx(0.0, abs=1e-6)
    assert one.gradient.abs().max() <= 1e-6
    width = 400_000
    student, teacher = logits(2, width), logits(2, width, 1)
    many = kd_loss_and_gradient(student, teacher, [width - 1, 0], temperature=2.0, alpha=0.5)
    wide = kd_loss_and_gradient(student.double(), teacher.double(), [width - 1, 0], temperature=2.0, alpha=0.5)
    assert many.loss == pytest.approx(wide.loss, rel=1e-6)
    torch.testing.assert_close(many.gradient.double(), wide.gradient, rtol=1e-4, atol=1e-10)


def test_what_cannot_be_compiled_is_computed_by_row_chunks() -> None:
    options: dict[str, Any] = {"temperature": 1.0, "weights": WEIGHTS}
    cpu = torch.device("cpu")
    assert isinstance(kernels.make_kernel(9, dtype=torch.float32, device=cpu, **options), CompiledKernel)
    assert isinstance(kernels.make_kernel(9, dtype=torch.float64, device=cpu, **options), RowKernel)
    assert isinstance(kernels.make_kernel(9, dtype=torch.float32, device=torch.device("meta"), **options), RowKernel)
    assert kernels.kernel_name(torch.device("meta")) == "row chunks"
    assert kernels.kernel_name(cpu).startswith("compiled (numba ")


@pytest.mark.parametrize("encoding", [Dense(), Hidden(), TopK(4), Sampled(5), None])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
def test_what_was_compiled_ahead_is_what_the_loss_takes(
    monkeypatch: pytest.MonkeyPatch, encoding: Encoding | None, temperature: float
) -> None:
    kernels.compile_ahead(torch.device("cpu"), encoding, temperature)
    monkeypatch.setattr(compiled_rows, "over_rows", lambda _: pytest.fail("compiled anew"))
    monkeypatch.setattr("stillhouse.kd.compiled.top_k.over_rows", lambda _: pytest.fail("compiled anew"))
    dense = encoding is None or isinstance(encoding, Dense | Hidden)
    teacher = answer(None if dense else encoding, logits(2, 50), temperature)
    assert kd_loss_and_gradient(logits(2, 50, 1), teacher, None, temperature=temperature, alpha=0.0).kl > -9


def test_numba_is_imported_when_a_loss_is_computed_and_no_earlier() -> None:
    program = (
        "import sys, torch, stillhouse.kd\n"
        "assert 'numba' not in sys.modules\n"
        "x = torch.zeros(2, 3)\n"
        "stillhouse.kd.kd_loss(x, x, temperature=1.0, alpha=0.0)\n"
        "assert 'numba' in sys.modules\n"
        "from stillhouse.kd import kernels\n"
        "assert kernels.is_compiled()\n"
        "sys.modules['numba'].config.DISABLE_JIT = 1\n"
        "kernels.is_compiled.cache_clear()\n"
        "assert not kernels.is_compiled()\n"
        "sys.modules['numba'] = None\n"
        "kernels.is_compiled.cache_clear()\n"
        "assert not kernels.is_compiled()\n"
        "assert float(stillhouse.kd.kd_loss(x, x, temperature=1.0, alpha=0.0)) == 0.0\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
