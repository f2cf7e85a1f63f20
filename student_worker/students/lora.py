"""A causal language model that learns through low-rank adapters (LoRA, arXiv 2106.09685), by peft.

Only the adapters are trained, and so only they are in the gradient, the optimizer, checkpoints and what heals a
newcomer; the weights below them stay as they were loaded. peft is imported when adapters are made.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.errors import ConfigurationError
from student_worker.export import export_adapter, export_folder
from student_worker.recipe.student import CausalLMSpec
from student_worker.students.base import ModelCard
from student_worker.students.causal_lm import CausalLMStudent

ADAPTER = "default"
"""What peft calls an adapter that nobody has named."""


class LoraStudent(CausalLMStudent):
    """Wraps a `PreTrainedModel` that `add_adapters` has given adapters.

    Args:
        adapted: what `add_adapters` returned.
        tokenizer: saved with the export; None leaves it out.
        export_dtype: the dtype that merged weights are saved in; an adapter alone is saved in float32.
        merge: export the whole model with its adapters merged, else the adapters alone.
        learning_rate: of `apply_gradients`.
        compile_body: as `CausalLMStudent` has it.
    """

    def __init__(
        self,
        adapted: Any,
        tokenizer: Any | None = None,
        *,
        export_dtype: torch.dtype = torch.float32,
        merge: bool = True,
        learning_rate: float = 1e-4,
        compile_body: bool = False,
    ) -> None:
        super().__init__(
            adapted.get_base_model(),
            tokenizer,
            export_dtype=export_dtype,
            learning_rate=learning_rate,
            compile_body=compile_body,
        )
        self._adapted = adapted
        self._merge = merge

    def export(self, folder: Path, card: ModelCard) -> None:
        """Write a model as any other student's, or a folder that `PeftModel.from_pretrained` opens."""
        if self._merge:
            tensors = merged_tensors(self._model)
            export_folder(folder, self._model, self.tokenizer, self.export_dtype, card, tensors=tensors)
        else:
            export_adapter(folder, self._adapted, self.tokenizer, card)


def add_adapters(model: Any, spec: CausalLMSpec, *, seed: int, base_name: str = "") -> Any:
    """Give a causal language model adapters, in place, and freeze all else; return it as peft's `PeftModel`.

    The adapters start at no effect; what is random about them is drawn from `seed` on the CPU, where `model` must be.

    Args:
        model: in float32.
        spec: its `lora_*` keys.
        seed: of the run.
        base_name: what an exported adapter says that it stands on.

    Raises:
        ConfigurationError: peft is not installed, or no adapter can stand where the spec says.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigurationError(
            f"student.lora_r needs peft, which is not installed ({error.name}): pip install 'stillhouse[lora]'"
        ) from error
    assert spec.lora_r is not None  # noqa: S101 - the caller has looked
    config = LoraConfig(
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha or 2 * spec.lora_r,  # type: ignore[arg-type]  # scales as a float does
        lora_dropout=spec.lora_dropout,
        target_modules=list(spec.lora_target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft tells of what it has adapted itself to
            torch.manual_seed(seed)
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        named = ", ".join(spec.lora_target_modules) or "all linear layers but the head"
        raise ConfigurationError(
            f"student.lora_target_modules ({named}): {type(model).__name__} takes no adapters there: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    _check_ties(model)
    adapted.peft_config[ADAPTER].base_model_name_or_path = base_name
    adapted.peft_config[ADAPTER].revision = spec.revision
    return adapted


def merged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of an adapted model as if it had been trained whole: plain names, adapters added in.

    The model stays as it is: adding and taking away again would not give back the same bits.
    """
    from peft.tuners.lora import LoraLayer

    deltas: dict[str, Tensor] = {}
    adapters: set[str] = set()
    state: dict[str, Tensor] = model.state_dict()
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        below = [key for key in state if key.startswith(f"{name}.base_layer.")]
        adapters.update(key for key in state if key.startswith(f"{name}.") and key not in below)
        # Experts held in one tensor are adapted by its name; a layer by its weight.
        key = _plain(f"{name}.{getattr(module, 'parameter_name', 'weight')}")
        # Every kind of adapted layer has this; their common base does not name it.
        deltas[key] = module.get_delta_weight(ADAPTER).detach()  # type: ignore[attr-defined]
    plain = {_plain(name): tensor for name, tensor in state.items() if name not in adapters}
    return plain | {name: plain[name] + delta for name, delta in deltas.items()}


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _check_ties(model: Any) -> None:
    """Refuse adapters on a weight that embedding and head share: merged, one would change the other.

    Raises:
        ConfigurationError: there is one.
    """
    from peft.tuners.lora import LoraLayer

    ends = {"head": model.get_output_embeddings(), "embedding": model.get_input_embeddings()}
    if ends["head"].weight is not ends["embedding"].weight:
        return
    for name, module in ends.items():
        if isinstance(module, LoraLayer):
            raise ConfigurationError(
                f"student.lora_target_modules names the {name}, whose weight {type(model).__name__} shares with the "
                "other end, so that adapters cannot be merged; leave it out"
            )
