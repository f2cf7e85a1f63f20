"""A student with no model: one learnt row of logits, whatever the input. For testing loops, services and faults."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stillhouse.errors import CheckpointError
from student_worker.batches import Batch
from student_worker.students.base import ModelCard, Student


class _Row(nn.Module):
    def __init__(self, vocabulary_size: int, initial_value: float) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.full((vocabulary_size,), initial_value))


class FixtureTrainee(Student):
    """One row of logits, trained as a model is. `stillhouse.FixtureStudent` is the same without a trainer."""

    def __init__(self, vocabulary_size: int, initial_value: float = 0.0, *, learning_rate: float = 0.1) -> None:
        super().__init__(_Row(vocabulary_size, initial_value), learning_rate)

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return self.num_parameters

    def row_states(self, batch: Batch) -> Tensor:
        """Return `[R, V]`: the row, once for each prediction."""
        row = next(self.module.parameters())
        return row.expand(batch.num_rows, -1)

    def head(self, states: Tensor) -> Tensor:
        """Return the states, which are logits already."""
        return states

    def export(self, folder: Path, card: ModelCard) -> None:
        """Write the row as `fixture.safetensors`, with the card's fields as its metadata."""
        row = next(self.module.parameters()).detach().cpu()
        if not bool(torch.isfinite(row).all()):
            raise CheckpointError(f"{folder}: the row holds a value that is not finite; nothing was exported")
        aside = folder / ".fixture.safetensors"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({"row": row}, aside, {"teacher": card.teacher, "data": card.data, "license": card.license})
            aside.rename(folder / "fixture.safetensors")
        except OSError as error:
            raise CheckpointError(f"{folder}: the export could not be written: {error}") from error
