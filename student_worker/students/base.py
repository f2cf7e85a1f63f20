"""What the trainer needs of a student: rows of a batch, a head that makes logits of them, and an export.

The split in two lets head, loss and gradient run over chunks of rows, so that `[R, V]` never exists at once. The
public protocol, `StudentLogitsProvider`, is built from the same two, once for every kind of student.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from stillhouse.fingerprint import weights_fingerprint
from stillhouse.providers import StudentLogitsProvider, TokenBatch
from student_worker.batches import NO_LABEL, PAD_TOKEN_ID, Batch
from student_worker.optimizer import StudentOptimizer


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What an exported folder's README says of where its weights come from."""

    teacher: str = "not recorded"
    data: str = "not recorded"
    license: str = "not recorded"
    facts: dict[str, str] = field(default_factory=dict)


class Student(StudentLogitsProvider):
    """A student that the trainer can train.

    As a `StudentLogitsProvider` it steps with its own AdamW; the trainer brings its own and uses `row_states` and
    `head` instead.

    Args:
        module: holds every parameter that there is.
        learning_rate: of `apply_gradients`.
    """

    def __init__(self, module: nn.Module, learning_rate: float) -> None:
        self.module = module
        self.learning_rate = learning_rate
        self._optimizer: StudentOptimizer | None = None
        self._computed: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.module.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Parameters in all, a tied one counted once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def num_trainable_parameters(self) -> int:
        """Those that gradients move: n of the gradient's sum."""
        return sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)

    @property
    def frozen_fingerprint(self) -> str:
        """The fingerprint of the parameters that stay as they were loaded, "" where there are none.

        They are in no checkpoint, and no peer hands them on: whoever trains on must have the same ones.
        """
        frozen = {name: p for name, p in self.module.named_parameters() if not p.requires_grad}
        return weights_fingerprint(frozen) if frozen else ""

    def warm_up(self, batch_size: int, length: int, *, autocast: bool = False) -> None:
        """Do what would make the first step slow, such as compiling; by default nothing.

        Args:
            batch_size: the most samples that a training batch will hold.
            length: the most tokens that a sample will hold.
            autocast: whether training computes in bfloat16.

        Raises:
            ConfigurationError: it cannot be done on this machine.
        """
        del batch_size, length, autocast

    @abstractmethod
    def row_states(self, batch: Batch) -> Tensor:
        """Return `[R, D]`: for each row of the batch, what `head` makes logits of. Carries the autograd graph."""

    @abstractmethod
    def head(self, states: Tensor) -> Tensor:
        """Return `[r, V]`, the logits of some row states."""

    @abstractmethod
    def export(self, folder: Path, card: ModelCard) -> None:
        """Write the folder that others open: complete or absent.

        Raises:
            CheckpointError: a NaN in the weights, or a failed write.
        """

    def save_checkpoint(self, folder: Path) -> None:
        """Write what `export` writes, with nothing recorded of where it comes from."""
        self.export(folder, ModelCard())

    def compute_logits(self, input_ids: TokenBatch) -> Tensor:
        """Return `[B, V]`: the logits at each sequence's last position."""
        if not input_ids:
            self._computed = []
            return torch.zeros(0, self.vocabulary_size)
        self._computed = [self._rows(input_ids, [torch.tensor([len(ids) - 1]) for ids in input_ids])]
        return self._computed[0].detach()

    def compute_position_logits(self, input_ids: TokenBatch) -> list[Tensor]:
        """Return one `[L_i, V]` for each sequence."""
        self._computed = []
        if input_ids:
            rows = self._rows(input_ids, [torch.arange(len(ids)) for ids in input_ids])
            self._computed = list(torch.split(rows, [len(ids) for ids in input_ids]))
        return [part.detach() for part in self._computed]

    def apply_gradients(self, gradients: Tensor | SequenceOf[Tensor], num_valid: int | None = None) -> None:
        """Take one AdamW step on the parameters; see `StudentLogitsProvider`."""
        given = [gradients] if isinstance(gradients, Tensor) else list(gradients)
        num_rows = sum(len(part) for part in given)
        if num_rows == 0:
            return
        shapes, expected = [tuple(part.shape) for part in given], [tuple(part.shape) for part in self._computed]
        if shapes != expected:
            raise ValueError(f"gradients have the shapes {shapes}, but the logits computed last have {expected}")
        divisor = num_rows if num_valid is None else num_valid
        if divisor < 1:
            raise ValueError(f"num_valid must be at least 1; got {divisor}")
        self._optimizer = self._optimizer or StudentOptimizer(self.module)
        flat = torch.zeros(self._optimizer.num_parameters, device=self.device)
        self._optimizer.attach(flat)
        torch.autograd.backward(self._computed, [part.to(self.device) / divisor for part in given])
        self._computed = []
        self._optimizer.apply(flat, self.learning_rate)

    def _rows(self, input_ids: TokenBatch, positions: list[Tensor]) -> Tensor:
        length = max(len(ids) for ids in input_ids)
        padded = torch.full((len(input_ids), length), PAD_TOKEN_ID)
        for index, ids in enumerate(input_ids):
            padded[index, : len(ids)] = torch.tensor(list(ids))
        rows = torch.cat([index * length + position for index, position in enumerate(positions)])
        position_ids = torch.arange(length).repeat(len(input_ids), 1)
        self.module.eval()
        batch = Batch(padded, position_ids, rows, torch.full_like(rows, NO_LABEL))
        return self.head(self.row_states(batch.to(self.device)))
