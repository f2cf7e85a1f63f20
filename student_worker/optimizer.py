"""AdamW over one flat gradient, and the flat views that gradients are gathered in.

The gradient that a step applies is one vector, summed over all workers; parameters are laid end to end in it in the
module's own order, a tied one once. Knows nothing of workers, schedules or losses.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class StudentOptimizer:
    """AdamW with the learning rate given at each step, reaching every trainable parameter, embeddings included.

    Weight decay is kept off vectors and scalars (norms and biases), as transformers does. The fused kernel
    works element by element, so the same step has the same bits wherever it is taken with as many threads; it took a
    third of the plain one's time (53 million parameters, one thread).
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        max_grad_norm: float = 0.0,
    ) -> None:
        self._named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._max_grad_norm = max_grad_norm
        decayed = [p for _, p in self._named if p.ndim >= 2]
        plain = [p for _, p in self._named if p.ndim < 2]
        groups = [
            {"params": params, "weight_decay": decay}
            for params, decay in ((decayed, weight_decay), (plain, 0.0))
            if params
        ]
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=True)

    @property
    def num_parameters(self) -> int:
        """n: the length of the flat gradient."""
        return sum(parameter.numel() for _, parameter in self._named)

    def attach(self, flat: Tensor) -> None:
        """Make every parameter's gradient a view into `flat` (`[n]` float32), so that backward adds into it."""
        offset = 0
        for _, parameter in self._named:
            size = parameter.numel()
            parameter.grad = flat[offset : offset + size].view_as(parameter)
            offset += size

    def detach(self) -> None:
        """Let go of the gradient's memory."""
        for _, parameter in self._named:
            parameter.grad = None

    def apply(self, flat: Tensor, learning_rate: float) -> float:
        """Clip `flat` in place to the largest allowed norm, take one step, and return the norm before clipping."""
        norm = float(torch.linalg.vector_norm(flat))
        if 0 < self._max_grad_norm < norm:
            flat.mul_(self._max_grad_norm / (norm + 1e-6))
        self.attach(flat)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.detach()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Return the moments by name (`exp_avg.NAME`, `exp_avg_sq.NAME`, `step`); zeros before the first step."""
        tensors: dict[str, Tensor] = {"step": torch.zeros((), dtype=torch.float32)}
        for name, parameter in self._named:
            state = self._adamw.state.get(parameter) or {}
            for moment in MOMENTS:
                tensors[f"{moment}.{name}"] = state[moment] if state else torch.zeros_like(parameter)
            if state:
                tensors["step"] = state["step"]
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over moments as `state` returned them.

        Raises:
            KeyError: a parameter's moments are missing.
        """
        for name, parameter in self._named:
            self._adamw.state[parameter] = {
                "step": tensors["step"].detach().clone().to(parameter.device, torch.float32),
                **{
                    moment: tensors[f"{moment}.{name}"].detach().clone().to(parameter.device, parameter.dtype)
                    for moment in MOMENTS
                },
            }
