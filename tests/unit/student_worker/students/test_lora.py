"""Low-rank adapters: what is trained, what they start from, and that an export is the model that was trained."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.errors import CheckpointError, ConfigurationError
from student_worker.optimizer import StudentOptimizer
from student_worker.recipe.schema import CausalLMSpec
from student_worker.state import WorkerState
from student_worker.students.base import ModelCard
from student_worker.students.lora import LoraStudent, add_adapters
from tests.tiny_models import tiny_model

IDS = torch.arange(1, 9)[None]


def spec(**keys: Any) -> CausalLMSpec:
    return CausalLMSpec(kind="causal_lm", model="base", **{"lora_r": 4, **keys})


def adapted(architecture: str = "llama", *, seed: int = 1, tied: bool = True, **keys: Any) -> Any:
    return add_adapters(tiny_model(architecture, tied=tied), spec(**keys), seed=seed, base_name="base")


def learnt(model: Any) -> Any:
    """Move every adapter away from where it has no effect."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model.eval()(input_ids=IDS).logits
    return result


def test_only_adapters_are_trained_checkpointed_and_summed() -> None:
    student = LoraStudent(adapted())
    optimizer = StudentOptimizer(student.module)
    tensors, _ = WorkerState(student.module, optimizer, {}).state()
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    assert weights
    assert all("lora_" in name for name in weights)
    assert sum(tensor.numel() for tensor in weights.values()) == optimizer.num_parameters
    assert optimizer.num_parameters == student.num_trainable_parameters < student.num_parameters / 5


def test_adapters_start_without_effect_and_the_same_from_the_same_seed() -> None:
    one, same, other = (dict(adapted(seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(logits(adapted()), logits(tiny_model("llama")))


def test_drawing_adapters_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    adapted()
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_key_reaches_the_adapters() -> None:
    by_default = adapted().peft_config["default"]
    assert (by_default.r, by_default.lora_alpha, by_default.lora_dropout) == (4, 8, 0)
    model = adapted(lora_r=2, lora_alpha=3, lora_dropout=0.5, lora_target_modules=("q_proj", "down_proj"))
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert {name.rsplit(".", 1)[1] for name in layers} == {"q_proj", "down_proj"}
    assert all(layer.scaling["default"] == 1.5 for layer in layers.values())
    student = LoraStudent(learnt(model)).module.train()
    torch.manual_seed(0)
    first, second = (student(input_ids=IDS).logits for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "opt"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_merged_export_is_the_model_that_was_trained(architecture: str, tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = learnt(adapted(architecture, tied=tied))
    expected = logits(model)
    student = LoraStudent(model)
    student.export(tmp_path / "export", ModelCard())
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(logits(opened), expected, rtol=1e-4, atol=1e-4)
    assert opened.state_dict().keys() == tiny_model(architecture, tied=tied).state_dict().keys()
    assert torch.equal(logits(model), expected), "exporting has changed what goes on being trained"


def test_an_exported_adapter_is_opened_by_peft(tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel

    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = learnt(add_adapters(tiny_model("llama"), spec(), seed=1, base_name=str(tmp_path / "base")))
    LoraStudent(model, merge=False).export(tmp_path / "export", ModelCard(teacher="the teacher"))
    assert not (tmp_path / "export" / "model.safetensors").exists()
    assert "the teacher" in (tmp_path / "export" / "README.md").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own use of transformers
        for opened in (
            PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "export"),
            AutoPeftModelForCausalLM.from_pretrained(tmp_path / "export"),
        ):
            torch.testing.assert_close(logits(opened), logits(model))


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_that_is_not_finite_is_never_exported(merge: bool, tmp_path: Path) -> None:
    student = LoraStudent(adapted(), merge=merge)
    with torch.no_grad():
        next(p for p in student.module.parameters() if p.requires_grad).fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        student.export(tmp_path / "export", ModelCard())
    assert not list(tmp_path.iterdir())


def test_another_base_has_another_fingerprint_and_training_does_not_change_it() -> None:
    student, model = LoraStudent(adapted()), adapted()
    before = student.frozen_fingerprint
    learnt(student.module)
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    other = LoraStudent(model)
    assert before == student.frozen_fingerprint != other.frozen_fingerprint


def test_a_checkpoint_over_another_base_is_refused() -> None:
    def state(base: str) -> WorkerState:
        module = LoraStudent(adapted()).module
        return WorkerState(module, StudentOptimizer(module), {"frozen weights": base})

    with pytest.raises(CheckpointError, match="its frozen weights is b, this one's is a"):
        state("a").load(*state("b").state())


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_a_weight_that_both_ends_share_takes_no_adapter(module: str) -> None:
    with pytest.raises(ConfigurationError, match=r"lora_target_modules names the (head|embedding).*leave it out"):
        adapted(lora_target_modules=(module,))


def test_a_head_of_its_own_may_have_one(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = learnt(adapted(tied=False, lora_target_modules=("lm_head", "embed_tokens")))
    LoraStudent(model).export(tmp_path / "export", ModelCard())
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "export")), logits(model))


@pytest.mark.parametrize(
    ("architecture", "modules", "reason"),
    [("llama", ("nothing",), "not found"), ("mamba", (), "Mamba"), ("llama", ("act_fn",), "not supported")],
)
def test_where_no_adapter_can_stand_is_said(architecture: str, modules: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"student\.lora_target_modules .*takes no adapters there.*{reason}"):
        adapted(architecture, lora_target_modules=modules)


def test_peft_missing_is_said_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'stillhouse\[lora\]'"):
        adapted()


@pytest.mark.parametrize("cut", [{"keep_layers": "0-1"}, {"keep_most_important": 2}], ids=lambda cut: next(iter(cut)))
def test_adapters_alone_are_not_exported_over_a_base_that_nobody_has(cut: dict[str, Any]) -> None:
    keys = {"kind": "causal_lm", "lora_r": 2, **cut}
    assert CausalLMSpec.model_validate(keys).lora_export == "merged"
    with pytest.raises(ValueError, match="this run's own; export it merged"):
        CausalLMSpec.model_validate({**keys, "lora_export": "adapter"})
