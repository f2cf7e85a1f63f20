"""The losses of other libraries, over logits that are there already; each is left out where it is not installed.

`make bench-peers` runs the benchmarks where they are. Neither has the factor T^2, nor, in TRL's case, a cross-entropy:
both are put in here, so that all contestants answer one question and their answers can be compared.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

LossAndGradient = Callable[[Tensor, Tensor, Tensor], tuple[float, Tensor]]
"""From student logits, teacher logits and labels to the loss and its derivative."""


def peer_losses(temperature: float, alpha: float) -> dict[str, LossAndGradient]:
    """Return those that are installed, by name."""
    makers = {"trl": ("trl", _trl), "liger, compiled": ("liger_kernel", _liger)}
    return {
        name: make(temperature, alpha)
        for name, (package, make) in makers.items()
        if importlib.util.find_spec(package) is not None
    }


def _trl(temperature: float, alpha: float) -> LossAndGradient:
    """TRL's `GKDTrainer.generalized_jsd_loss` at beta = 0, the forward KL, left to autograd as there."""
    trainer = importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer

    def run(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        leaf = student.detach().requires_grad_()
        divergence = trainer.generalized_jsd_loss(leaf, teacher, beta=0, temperature=temperature)
        loss = (1 - alpha) * temperature**2 * divergence + alpha * torch.nn.functional.cross_entropy(leaf, labels)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.item(), gradient

    return run


def _liger(temperature: float, alpha: float) -> LossAndGradient:
    """Liger-Kernel's distillation loss as its `LigerFusedLinearDistillationBase` has it, less the head's matmul.

    That is: both terms from logits, `torch.func.grad_and_value` over them, and all of it compiled by `torch.compile`;
    its Triton kernels need a GPU.
    """
    module = importlib.import_module("liger_kernel.chunked_loss.jsd_loss")
    divergence = module.LigerFusedLinearJSDFunction.distillation_loss_fn

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_probs = torch.nn.functional.log_softmax(student.float(), dim=-1)
        hard = torch.nn.functional.nll_loss(log_probs, labels, reduction="sum", ignore_index=-100) / len(labels)
        soft = divergence(student / temperature, teacher / temperature, beta=0, target=labels) / len(labels)
        total: Tensor = alpha * hard + (1 - alpha) * temperature**2 * soft
        return total

    compiled = torch.compile(torch.func.grad_and_value(loss))

    def run(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        gradient, value = compiled(student, teacher, labels)
        return value.item(), gradient

    return run
