"""How fast are loss and gradient of a block of rows, against autograd, peers, and touching its memory once?

The contestants take the same logits and give loss and gradient; a memory pass reads both sides' logits and writes
one result, which no loss can undercut. `stillhouse, out` is given a tensor for its gradient, as the memory pass is, and
has the headline figures; `stillhouse` allocates it, as autograd does; `row chunks` is what stands in for the compiled
kernel where numba is missing, with `out` too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks._measure import interleave
from benchmarks._peer_losses import LossAndGradient, peer_losses
from benchmarks._result import Result, Value
from stillhouse.encode import encode_logits
from stillhouse.encodings import Encoding, Sampled, TopK
from stillhouse.kd import kd_loss_and_gradient, kernels
from stillhouse.payloads import Payload
from stillhouse.request import All, Sequence

KEPT_IDS = 64
DRAWS = 50
LIGER = "liger, compiled"


@dataclass(frozen=True, slots=True)
class Setting:
    """A loss to compare; the first one of `SETTINGS` gives the headline figures."""

    name: str
    temperature: float
    alpha: float
    dtype: torch.dtype = torch.float32
    encoding: Encoding | None = None


SETTINGS = (
    Setting("dense, T=2, alpha=0.5", 2.0, 0.5),
    Setting("dense, T=1, alpha=0", 1.0, 0.0),
    Setting("dense bfloat16, T=2, alpha=0.5", 2.0, 0.5, torch.bfloat16),
    Setting("top-64, T=1, alpha=0.5", 1.0, 0.5, encoding=TopK(KEPT_IDS, "float32")),
    Setting("top-64, T=2, alpha=0.5", 2.0, 0.5, encoding=TopK(KEPT_IDS, "float32")),
    Setting("sampled 50, T=1, alpha=0.5", 1.0, 0.5, encoding=Sampled(DRAWS)),
)


def measure(quick: bool) -> Result:
    """Time every setting; the figures are ratios of least times in the first one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # A GPU has done with 512 rows before Python has asked for the next.
    rows, width, rounds = (16, 4096, 3) if quick else (4096 if device.type == "cuda" else 512, 49_152, 7)
    table: list[dict[str, Value]] = [{"setting": "all", "contestant": f"stillhouse: {kernels.kernel_name(device)}"}]
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
        if not figures:
            ours = least["stillhouse, out"]
            figures = {
                "speedup_over_eager": least["eager"] / ours,
                "ratio_to_memory_pass": ours / least["memory pass"],
            }
            if LIGER in least:
                figures["speedup_over_liger"] = least[LIGER] / ours
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
        self.peers: dict[str, LossAndGradient] = {}
        if setting.encoding is not None:
            asked = Sequence((0,) * rows, positions=All())
            self.answer = encode_logits(
                [teacher], setting.encoding, sequence=asked, temperature=setting.temperature, vocabulary_size=width
            )
        elif setting.dtype == torch.float32:
            self.peers = peer_losses(setting.temperature, setting.alpha)

    def contestants(self) -> dict[str, Callable[[], object]]:
        return {
            "memory pass": lambda: torch.add(self.student, self.teacher, out=self.out),
            "eager": self.eager,
            **{name: self._peer(name) for name in self.peers},
            "row chunks": self.row_chunks,
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

    def row_chunks(self) -> tuple[float, Tensor]:
        with patch.object(kernels, "chosen", return_value="row chunks"):
            return self.stillhouse(self.out)

    def eager(self) -> tuple[float, Tensor]:
        """The loss as most training scripts have it, left to autograd."""
        temperature, alpha = self.setting.temperature, self.setting.alpha
        student = self.student.detach().requires_grad_()
        log_q = torch.log_softmax(student.float() / temperature, -1)
        loss = (1 - alpha) * temperature**2 * self._divergence(log_q)
        if alpha:
            loss = loss + alpha * torch.nn.functional.cross_entropy(student.float(), self.labels)
        (gradient,) = torch.autograd.grad(loss, student)
        return loss.item(), gradient

    def _divergence(self, log_q: Tensor) -> Tensor:
        match self.answer:
            case Tensor():
                log_p = torch.log_softmax(self.teacher.float() / self.setting.temperature, -1)
                return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
            case _ if isinstance(self.setting.encoding, TopK):
                log_p = torch.log_softmax(self.teacher / self.setting.temperature, -1)
                ids = self.answer.token_ids.to(log_q.device, torch.int64)  # type: ignore[union-attr]  # as it was asked for
                log_p, log_q = _bucketed(log_p, ids), _bucketed(log_q, ids)
                return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
            case _:
                drawn = self.answer
                rows = torch.repeat_interleave(torch.arange(len(log_q)), drawn.offsets.diff())  # type: ignore[union-attr]  # as above
                share = drawn.counts.float() / DRAWS  # type: ignore[union-attr]  # as above
                taken = log_q[rows.to(log_q.device), drawn.token_ids.to(log_q.device, torch.int64)]  # type: ignore[union-attr]  # as above
                return -((share.to(log_q.device) * taken).sum() + drawn.entropy.sum()) / len(log_q)  # type: ignore[union-attr]  # as above

    def _peer(self, name: str) -> Callable[[], tuple[float, Tensor]]:
        return lambda: self.peers[name](self.student, self.teacher, self.labels)

    def check(self) -> None:
        """See that all compute the same loss and gradient; a fast wrong answer is no answer."""
        theirs, their_gradient = self.eager()
        contestants: dict[str, Callable[[], tuple[float, Tensor]]] = {
            "stillhouse": self.stillhouse,
            "row chunks": self.row_chunks,
            **{name: self._peer(name) for name in self.peers},
        }
        for name, run in contestants.items():
            ours, our_gradient = run()
            assert abs(ours - theirs) <= 1e-3 * abs(theirs), f"{self.setting.name}: {name}: losses {ours} and {theirs}"
            difference = float((our_gradient.float() - their_gradient.float()).norm())
            assert difference <= 1e-2 * float(their_gradient.float().norm()), (
                f"{self.setting.name}: {name}: gradients differ"
            )


def _bucketed(log_probs: Tensor, head_ids: Tensor) -> Tensor:
    tail = torch.logsumexp(log_probs.scatter(1, head_ids, -torch.inf), -1, keepdim=True)
    return torch.cat([log_probs.gather(1, head_ids), tail], -1)
