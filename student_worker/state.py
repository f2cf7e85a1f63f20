"""All that a worker needs to go on: weights, optimizer, and how far it is.

The same tensors and metadata serve a checkpoint on disk and a peer that heals a newcomer. No generator's state is
among them: everything random is drawn from (seed, step, micro-shard).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.errors import CheckpointError
from student_worker.optimizer import StudentOptimizer

WEIGHTS = "model."
OPTIMIZER = "optimizer."


class WorkerState:
    """Weights, optimizer and position of one run.

    Args:
        module: what is trained.
        optimizer: over its parameters.
        identity: what a checkpoint must agree on to be of this run: fingerprints by name.
    """

    def __init__(self, module: nn.Module, optimizer: StudentOptimizer, identity: dict[str, str]) -> None:
        self._module = module
        self._optimizer = optimizer
        self.identity = identity
        self.step = 0
        self.num_tokens = 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything; the tensors are the live ones."""
        tensors = {WEIGHTS + name: tensor.detach() for name, tensor in self._tensors().items()}
        tensors.update({OPTIMIZER + name: tensor for name, tensor in self._optimizer.state().items()})
        return tensors, {"step": self.step, "num_tokens": self.num_tokens, "identity": self.identity}

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Take over what `state` returned, here or on a peer.

        Raises:
            CheckpointError: of another run or another student; nothing has been changed then.
        """
        for key, ours in self.identity.items():
            theirs = metadata.get("identity", {}).get(key)
            if theirs != ours:
                raise CheckpointError(
                    f"the checkpoint is of another run: its {key} is {theirs}, this one's is {ours}; "
                    "resume with the recipe, data and teacher that it began with, or choose another output_dir"
                )
        mine = self._tensors()
        for name, tensor in mine.items():
            given = tensors.get(WEIGHTS + name)
            if given is None or given.shape != tensor.shape:
                found = "absent" if given is None else list(given.shape)
                raise CheckpointError(f"the checkpoint's {name} is {found}; this student's is {list(tensor.shape)}")
        try:
            moments = {name: tensors[OPTIMIZER + name] for name in self._optimizer.state()}
        except KeyError as error:
            raise CheckpointError(f"the checkpoint holds no {error.args[0]}") from error
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[WEIGHTS + name])
        self._optimizer.load(moments)
        self.step = int(metadata["step"])
        self.num_tokens = int(metadata["num_tokens"])

    def _tensors(self) -> dict[str, Tensor]:
        """Return parameters and saved buffers by name; a tied one once."""
        saved = self._module.state_dict(keep_vars=True)
        named: dict[str, Tensor] = dict(self._module.named_parameters())
        named.update({name: buffer for name, buffer in self._module.named_buffers() if name in saved})
        return named
