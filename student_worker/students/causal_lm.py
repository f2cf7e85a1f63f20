"""A causal language model of transformers as a student.

Trained in float32, whatever dtype its weights came in; exported in the dtype that they came in. Knows nothing of
where teachers, workers or samples come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse.errors import ConfigurationError
from student_worker.batches import Batch
from student_worker.export import export_folder
from student_worker.students.base import ModelCard, Student
from student_worker.students.compiled import CompiledBody

PROBE_LENGTH = 5
HEAD_TOLERANCE = 1e-4


class CausalLMStudent(Student):
    """Wraps a `PreTrainedModel` with a language modelling head.

    Args:
        model: in float32; it is trained in place.
        tokenizer: saved with the export; None leaves it out.
        export_dtype: the dtype that weights are saved in.
        learning_rate: of `apply_gradients`.
        compile_body: train by a compiled body, from `warm_up` on; evaluation stays as it is.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any | None = None,
        *,
        export_dtype: torch.dtype = torch.float32,
        learning_rate: float = 1e-4,
        compile_body: bool = False,
    ) -> None:
        super().__init__(model, learning_rate)
        self.tokenizer = tokenizer
        self.export_dtype = export_dtype
        self._model = model
        self._plain_head = _head_is_plain(model)
        self._compiled = CompiledBody(self._states) if compile_body else None

    @property
    def vocabulary_size(self) -> int:
        """V: the width of a logit row, padding of the head included."""
        return int(self._model.get_output_embeddings().weight.shape[0])

    def row_states(self, batch: Batch) -> Tensor:
        """Return final hidden states `[R, D]`, or logits `[R, V]` where the head does more than multiply."""
        if self._compiled is not None and self.module.training:
            return self._compiled.row_states(batch)
        return self._states(batch.input_ids, batch.position_ids).flatten(0, 1).index_select(0, batch.rows)

    def _states(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        body = self._model.base_model if self._plain_head else self._model
        output = body(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        full: Tensor = output.last_hidden_state if self._plain_head else output.logits
        return full

    def warm_up(self, batch_size: int, length: int, *, autocast: bool = False) -> None:
        """Compile, where that is wanted."""
        if self._compiled is None:
            return
        self.module.train()
        cuda = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=cuda):
                self._compiled.compile(batch_size, length, self.device, autocast=autocast)
        finally:
            self.module.zero_grad(set_to_none=True)

    def head(self, states: Tensor) -> Tensor:
        """Return logits `[r, V]`."""
        logits: Tensor = self._model.get_output_embeddings()(states) if self._plain_head else states
        return logits

    def export(self, folder: Path, card: ModelCard) -> None:
        """Write model, configuration, tokenizer, generation configuration and model card."""
        export_folder(folder, self._model, self.tokenizer, self.export_dtype, card)


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass instead of keeping them.

    Raises:
        ConfigurationError: the model cannot.
    """
    # Newer releases of transformers have given it another name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigurationError(f"student.gradient_checkpointing: {error}; leave it out") from error


@torch.no_grad()
def _head_is_plain(model: Any) -> bool:
    """Tell whether logits are the head's matmul of the body's output and nothing more (no scaling, no soft cap)."""
    training = model.training
    model.eval()
    width = model.get_output_embeddings().weight.shape[0]
    ids = torch.arange(1, PROBE_LENGTH + 1, device=next(model.parameters()).device)[None] % width
    whole = model(input_ids=ids, use_cache=False).logits
    try:
        parts = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    except AttributeError:
        return False
    finally:
        model.train(training)
    return bool(torch.allclose(whole, parts, rtol=HEAD_TOLERANCE, atol=HEAD_TOLERANCE))
