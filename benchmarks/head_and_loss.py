"""How much memory do head and loss take whose logits never exist whole, and does it cost time?

Each way runs in a process of its own, whose peak is read over what stood before it. All give the loss and the gradients
of the hidden states and the head; the first one is the plain way: the logits of both sides at once. Row i's answer is a
hidden state of the teacher.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._peak_memory import apart, peak_bytes
from benchmarks._result import Result, Value
from stillhouse.kd import head_kd_loss, kd_loss
from stillhouse.payloads import HiddenStates, OutputHead

TEMPERATURE, ALPHA = 2.0, 0.5


@dataclass(frozen=True, slots=True)
class Size:
    """Tokens, ids, and the hidden widths of student and teacher."""

    tokens: int
    vocabulary: int
    student: int
    teacher: int


QUICK = Size(2048, 32_768, 64, 96)
WHOLE = Size(8192, 151_936, 896, 1536)
"""The vocabulary of the Qwen2.5 models; the widths of those of 0.5 and 1.5 billion parameters."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way took, and what it came to."""

    peak_bytes: int
    seconds: float
    loss: float
    gradient_norms: tuple[float, float]


def measure(quick: bool) -> Result:
    """Run each way once; the figure is the peak of head and loss in one over that of the plain way."""
    size = QUICK if quick else WHOLE
    _check_memory(size)
    ways: dict[str, Callable[[_Inputs], Tensor]] = {
        "plain: all logits of both sides": _plain,
        "head_kd_loss": _in_one,
    }
    costs = {name: apart(partial(_measure_here, way, size), timeout_seconds=1800) for name, way in ways.items()}
    plain = costs["plain: all logits of both sides"]
    table: list[dict[str, Value]] = []
    for name, cost in costs.items():
        assert math.isclose(cost.loss, plain.loss, rel_tol=1e-5), f"{name}: losses {cost.loss} and {plain.loss}"
        for ours, theirs in zip(cost.gradient_norms, plain.gradient_norms, strict=True):
            assert math.isclose(ours, theirs, rel_tol=1e-4), f"{name}: gradients of norms {ours} and {theirs}"
        table.append(
            {
                "way": name,
                "peak_mib": round(cost.peak_bytes / 2**20),
                "over_plain": round(cost.peak_bytes / plain.peak_bytes, 4),
                "seconds": round(cost.seconds, 2),
            }
        )
    ratio = costs["head_kd_loss"].peak_bytes / plain.peak_bytes
    return Result("head_and_loss", 1, table, {"peak_memory_over_plain": ratio})


def _check_memory(size: Size) -> None:
    """Refuse to start what the machine has no room for: the plain way holds three tensors of all logits.

    Raises:
        MemoryError: too little is available.
    """
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:"))
    needed = (3 * size.tokens + 4 * size.student + 2 * size.teacher) * size.vocabulary * 4 / 2**30 + 1
    if not torch.cuda.is_available() and available < needed:
        raise MemoryError(f"the plain way takes {needed:.1f} GiB and {available:.1f} are available; --quick takes less")


class _Inputs:
    """Hidden states and heads of both sides, the same in every process."""

    def __init__(self, size: Size) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator().manual_seed(0)

        def normal(rows: int, width: int) -> Tensor:
            return torch.randn(rows, width, generator=generator).to(device)

        self.hidden = normal(size.tokens, size.student).requires_grad_()
        self.weight = (normal(size.vocabulary, size.student) / math.sqrt(size.student)).requires_grad_()
        self.taught = normal(size.tokens, size.teacher)
        self.head = OutputHead(2 * normal(size.vocabulary, size.teacher) / math.sqrt(size.teacher))
        self.labels = torch.randint(0, size.vocabulary, (size.tokens,), generator=generator).to(device)


def _plain(inputs: _Inputs) -> Tensor:
    logits = inputs.hidden @ inputs.weight.T
    teacher = inputs.head.logits(inputs.taught, len(inputs.weight))
    return kd_loss(logits, teacher, inputs.labels, temperature=TEMPERATURE, alpha=ALPHA)


def _in_one(inputs: _Inputs) -> Tensor:
    return head_kd_loss(
        inputs.hidden,
        inputs.weight,
        HiddenStates(inputs.taught),
        inputs.labels,
        temperature=TEMPERATURE,
        alpha=ALPHA,
        output_head=inputs.head,
    )


def _measure_here(way: Callable[[_Inputs], Tensor], size: Size) -> Cost:
    """Return what a way costs over what stood before it: its inputs, and what is set up when first used."""
    way(_Inputs(Size(32, 4096, 16, 16))).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    inputs = _Inputs(size)
    values: list[float] = []

    def run() -> None:
        loss = way(inputs)
        loss.backward()  # type: ignore[no-untyped-call]  # as above
        values.append(loss.item())

    started = time.perf_counter()
    peak = peak_bytes(run)
    seconds = time.perf_counter() - started
    gradients = [tensor.grad for tensor in (inputs.hidden, inputs.weight) if tensor.grad is not None]
    first, second = (float(gradient.norm()) for gradient in gradients)
    return Cost(peak, seconds, values[0], (first, second))
