"""A dropout probability reaches every key of the configuration, and acts in training alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.errors import ConfigurationError
from student_worker.students.dropout import check_dropout_acts, dropout_overrides
from tests.tiny_models import tiny_model

KEYS = {
    "llama": ["attention_dropout"],
    "gpt2": ["attn_pdrop", "embd_pdrop", "resid_pdrop"],
    "gpt_neox": ["attention_dropout", "hidden_dropout"],
    "opt": ["attention_dropout", "dropout"],
}


@pytest.mark.parametrize("architecture", KEYS)
def test_every_dropout_of_the_configuration_is_set(architecture: str) -> None:
    overrides = dropout_overrides(tiny_model(architecture).config, 0.3, "it")
    assert sorted(overrides) == KEYS[architecture]
    assert set(overrides.values()) == {0.3}


def test_a_configuration_without_any_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"student\.dropout 0\.1 has no effect: .* of its folder \(mamba\)"):
        dropout_overrides(tiny_model("mamba").config, 0.1, "its folder")


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", "gemma2", "cohere", "gpt2", "gpt_neox", "opt", "phi", "mixtral"]
)
def test_it_acts_wherever_the_configuration_has_it(architecture: str) -> None:
    silent: dict[str, dict[str, Any]] = {
        "gpt2": {"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0},
        "opt": {"dropout": 0},
    }
    base = tiny_model(architecture, **silent.get(architecture, {}))
    with pytest.raises(ConfigurationError, match="drops nothing in training"):
        check_dropout_acts(base, 0.1)
    keys: dict[str, Any] = dict(dropout_overrides(base.config, 0.1, "it"))
    model = tiny_model(architecture, **keys)
    state = torch.random.get_rng_state()
    check_dropout_acts(model, 0.1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training


def build(folder: Path, **keys: Any) -> Any:
    from student_worker.recipe.schema import CausalLMSpec
    from student_worker.students.build import build_student

    return build_student(
        CausalLMSpec(kind="causal_lm", **keys),
        tokenizer=None,
        teacher_model=str(folder),
        teacher_vocabulary_size=97,
        seed=1,
        device=torch.device("cpu"),
    ).student.module


@pytest.mark.parametrize("source", ["model", "config"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_student_drops_in_training_and_not_in_evaluation(source: str, attention: str, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    model = build(tmp_path, **{source: str(tmp_path)}, dropout=0.5, attn_implementation=attention)
    assert model.config.attention_dropout == 0.5
    assert model.config._attn_implementation == attention
    ids = torch.arange(20)[None]

    def differs() -> bool:
        with torch.no_grad():
            return not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)

    model.train()
    assert differs()
    model.eval()
    assert not differs()


def test_without_the_key_the_model_keeps_its_own(tmp_path: Path) -> None:
    tiny_model("gpt2", resid_pdrop=0.25).save_pretrained(tmp_path)
    assert build(tmp_path, model=str(tmp_path)).config.resid_pdrop == 0.25
    assert build(tmp_path, model=str(tmp_path), dropout=0).config.resid_pdrop == 0
