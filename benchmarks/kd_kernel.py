"""How fast are loss and gradient of a block of rows, against autograd and against touching its memory once?

The contestants take the same logits and give loss and gradient; a memory pass reads both sides' logits and writes
one result, which no loss can undercut. `stillhouse` allocates its gradient, as autograd does; `stillhouse, out` is
given one, as the memory pass is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks._measure import interleave
from benchmarks._result import Result, Value
from stillhouse.encode import encode_logits
from stillhouse.encodings import TopK
from stillhouse.kd import kd_loss_and_gradient
from stillhouse.payloads import Payload
from stillhouse.request import All, Sequence

KEPT_IDS = 64


@dataclass(frozen=True, slots=True)
class Setting:
    """A loss to compare; the first one of `SETTINGS` gives the headline figures."""

    name: str
    temperature: float
    alpha: float
    dtype: torch.dtype = torch.float32
    top_k: bool = False


SETTINGS = (
    Setting("dense, T=2, alpha=0.5", 2.0, 0.5),
    Setting("dense, T=1, alpha=0", 1.0, 0.0),
    Setting("dense bfloat16, T=2, alpha=0.5", 2.0, 0.5, torch.bfloat16),
    Setting("top-64, T=1, alpha=0.5", 1.0, 0.5, top_k=True),
)


def measure(quick: bool) -> Result:
    """Time every setting; the figures are ratios of least times in the first one."""
    rows, width, rounds = (16, 4096, 3) if quick else (256, 49_152, 9)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table: list[dict[str, Value]] = []
    figures: dict[str, float] = {}
    for setting in SETTINGS:
        block = _Block(setting, rows, width, device)
        block.check()
        timings = interleave(block.contestants(), rounds)
        least = {name: timing.minimum for name, timing in timings.items()}
        for name, timing in timings.items():
            table.append(
                {
                    "setting": setting.name,
                    "contestant": name,
                    **timing.milliseconds(),
                    "times_memory_pass": round(timing.minimum / least["memory pass"], 2),
                }
            )
        figures = figures or {
            "speedup_over_eager": least["eager"] / least["stillhouse"],
            "ratio_to_memory_pass": least["stillhouse"] / least["memory pass"],
        }
    if importlib.util.find_spec("liger_kernel") is None:
        table.append({"setting": "all", "contestant": "liger: not installed, not compared"})
    else:
        table.append({"setting": "all", "contestant": "liger: its fused loss holds the head too; see head_and_loss"})
    return Result("kd_kernel", rounds, table, figures)


class _Block:
    """The inputs of one setting, the same for all contestants."""

    def __init__(self, setting: Setting, rows: int, width: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        student, teacher = (3 * torch.randn(rows, width, generator=generator) for _ in range(2))
        self.setting = setting
        self.student = student.to(device, setting.dtype)
        self.teacher = teacher.to(device, setting.dtype)
        self.labels = torch.randint(0, width, (rows,), generator=generator).to(device)
        self.out = torch.empty_like(self.student)
        self.answer: Payload | Tensor = self.teacher
        self.head_ids: Tensor | None = None
        if setting.top_k:
            encoding = TopK(min(KEPT_IDS, width), "float32")
            asked = Sequence((0,) * rows, positions=All())
            self.answer = encode_logits(
                [teacher], encoding, sequence=asked, temperature=setting.temperature, vocabulary_size=width
            )
            self.head_ids = self.teacher.topk(encoding.k, -1).indices

    def contestants(self) -> dict[str, Callable[[], object]]:
        return {
            "memory pass": lambda: torch.add(self.student, self.teacher, out=self.out),
            "eager": self.eager,
            "stillhouse": self.stillhouse,
            "stillhouse, out": lambda: self.stillhouse(self.out),
        }

    def stillhouse(self, out: Tensor | None = None) -> tuple[float, Tensor]:
        result = kd_loss_and_gradient(
            self.student,
            self.answer,
            self.labels,
            temperature=self.setting.temperature,
            alpha=self.setting.alpha,
            out=out,
        )
        return result.loss, result.gradient

    def eager(self) -> tuple[float, Tensor]:
        """The loss as most training scripts have it, left to autograd."""
        temperature, alpha = self.setting.temperature, self.setting.alpha
        student = self.student.detach().requires_grad_()
        log_q = torch.log_softmax(student.float() / temperature, -1)
        log_p = torch.log_softmax(self.teacher.float() / temperature, -1)
        if self.head_ids is not None:
            log_q, log_p = _bucketed(log_q, self.head_ids), _bucketed(log_p, self.head_ids)
        loss = (
            (1 - alpha)
            * temperature**2
            * torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        )
        if alpha:
            loss = loss + alpha * torch.nn.functional.cross_entropy(student.float(), self.labels)
        (gradient,) = torch.autograd.grad(loss, student)
        return loss.item(), gradient

    def check(self) -> None:
        """See that both compute the same loss and gradient; a fast wrong answer is no answer."""
        (ours, our_gradient), (theirs, their_gradient) = self.stillhouse(), self.eager()
        assert abs(ours - theirs) <= 1e-3 * abs(theirs), f"{self.setting.name}: losses {ours} and {theirs}"
        difference = float((our_gradient.float() - their_gradient.float()).norm())
        assert difference <= 1e-2 * float(their_gradient.float().norm()), f"{self.setting.name}: gradients differ"


def _bucketed(log_probs: Tensor, head_ids: Tensor) -> Tensor:
    tail = torch.logsumexp(log_probs.scatter(1, head_ids, -torch.inf), -1, keepdim=True)
    return torch.cat([log_probs.gather(1, head_ids), tail], -1)
