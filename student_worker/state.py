"""All that a worker needs to go on: weights, optimizer, and how far it is.

The same tensors and metadata serve a checkpoint on disk and a peer that heals a newcomer. No generator's state is
among them: everything random is drawn from (seed, step, micro-shard).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stillhouse.errors import CheckpointError
from student_worker.optimizer import StudentOptimizer

WEIGHTS = "model."
OPTIMIZER = "optimizer."


@runtime_checkable
class Keeper(Protocol):
    """Something small that must go on where it was after a resume, and in a newcomer: a best figure, a count."""

    def progress(self) -> Any:
        """Return what there is to keep, as JSON holds it."""

    def restore(self, progress: Any) -> None:
        """Take over what `progress` returned, here or on a peer."""


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
        self._keepers: dict[str, Keeper] = {}
        self._progress: dict[str, Any] = {}

    def keep(self, name: str, keeper: Keeper) -> None:
        """Keep what it has to keep from now on, and give it what was loaded before."""
        self._keepers[name] = keeper
        if name in self._progress:
            keeper.restore(self._progress[name])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything; the tensors are the live ones."""
        tensors = {WEIGHTS + name: tensor.detach() for name, tensor in self._tensors().items()}
        tensors.update({OPTIMIZER + name: tensor for name, tensor in self._optimizer.state().items()})
        self._progress |= {name: keeper.progress() for name, keeper in self._keepers.items()}
        metadata = {"step": self.step, "num_tokens": self.num_tokens, "identity": self.identity}
        return tensors, {**metadata, "progress": dict(self._progress)}

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
        try:
            moments = {name: tensors[OPTIMIZER + name] for name in self._optimizer.state()}
            step, num_tokens = int(metadata["step"]), int(metadata["num_tokens"])
        except KeyError as error:
            raise CheckpointError(f"the checkpoint holds no {error.args[0]}") from error
        self.load_weights(tensors)
        self._optimizer.load(moments)
        self.step, self.num_tokens = step, num_tokens
        self._progress = dict(metadata.get("progress", {}))
        for name in self._keepers.keys() & self._progress.keys():
            self._keepers[name].restore(self._progress[name])

    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Take over the weights alone, as an export of the best ones wants them.

        Raises:
            CheckpointError: they are of another student; nothing has been changed then.
        """
        mine = self._tensors()
        for name, tensor in mine.items():
            given = tensors.get(WEIGHTS + name)
            if given is None or given.shape != tensor.shape:
                found = "absent" if given is None else list(given.shape)
                raise CheckpointError(f"the checkpoint's {name} is {found}; this student's is {list(tensor.shape)}")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[WEIGHTS + name])

    def _tensors(self) -> dict[str, Tensor]:
        """Return trained parameters and saved buffers by name; a tied one once.

        What is frozen stays as it was loaded, and is held to that by a fingerprint in the identity.
        """
        saved = self._module.state_dict(keep_vars=True)
        named: dict[str, Tensor] = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        named.update({name: buffer for name, buffer in self._module.named_buffers() if name in saved})
        return named
