"""Every key of the recipe that the trained weights depend on changes them, as plain torch would have it.

A key that is added to the schema fails here until it stands in one of the tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.data import PackedDataset
from student_worker.recipe.schema import RESULT, CausalLMSpec, Recipe
from tests.integration.student_worker.conftest import Train, Trained
from tests.integration.student_worker.plain_loop import Settings, dataset, plain_loop

Keys = dict[str, Any]
TESTS = Path(__file__).parents[2]
EVALUATED: Keys = {"data": {"held_out_samples": 3}, "eval_steps": 1, "encoding": "hidden:f32"}

# Of each key the values to try, and what must stand beside it for them to have an effect.
AS_IN_PLAIN_TORCH: list[tuple[str, Any, Keys]] = [
    ("learning_rate", 1e-3, {}),
    ("lr_scheduler_type", "linear", {}),
    ("lr_scheduler_type", "constant", {"warmup_steps": 2}),
    ("lr_scheduler_type", "inverse_sqrt", {"warmup_steps": 1}),
    ("warmup_steps", 2, {}),
    ("weight_decay", 2.0, {}),
    ("adam_beta1", 0.5, {}),
    ("adam_beta2", 0.9, {}),
    ("adam_epsilon", 1e-2, {}),
    ("max_grad_norm", 0.05, {"adam_epsilon": 1e-2}),
    ("max_grad_norm", 0, {"adam_epsilon": 1e-2}),
    ("temperature", 1.0, {}),
    ("alpha", 0.75, {}),
    ("loss", "reverse_kl", {}),
    ("loss", "jsd", {}),
    ("jsd_beta", 0.1, {"loss": "jsd"}),
    ("max_steps", 2, {}),
    ("num_train_epochs", 0.5, {}),
    ("max_tokens", 200, {}),
    ("global_batch_size", 5, {}),
    ("seed", 8, {}),
]
OTHERS: list[tuple[str, Any, Keys]] = [
    ("micro_shards", 1, {}),
    ("per_device_train_batch_size", 1, {}),
    ("reduction", "fast", {}),
    ("precision", "bfloat16", {}),
    ("encoding", "top_k:4", {}),
    ("top_k_tail", "renormalise", {"encoding": "top_k:4"}),
    ("early_stopping_patience", 2, {**EVALUATED, "early_stopping_threshold": 1e9, "early_stopping_patience": 1}),
    ("early_stopping_threshold", 1e9, {**EVALUATED, "early_stopping_patience": 1}),
]
QUICK = [
    ("learning_rate", 1e-3),
    ("lr_scheduler_type", "constant"),
    ("weight_decay", 2.0),
    ("adam_beta1", 0.5),
    ("max_grad_norm", 0.05),
    ("temperature", 1.0),
    ("loss", "reverse_kl"),
    ("seed", 8),
    ("per_device_train_batch_size", 1),
    ("reduction", "fast"),
]
SAME_BUT_FOR_ROUNDING = ("micro_shards", "per_device_train_batch_size", "reduction", "precision")
STUDENTS: list[tuple[str, Keys, Keys]] = [
    ("model", {"model": "OTHER", "keep_layers": "1"}, {"keep_layers": "1"}),
    ("config", {"config": "CONFIG"}, {"keep_layers": "1"}),
    ("keep_layers", {"keep_layers": "0"}, {"keep_layers": "1"}),
    ("keep_most_important", {"model": "OTHER", "keep_most_important": 1}, {"model": "OTHER"}),
    ("attn_implementation", {"keep_layers": "1", "attn_implementation": "eager"}, {"keep_layers": "1"}),
    ("dropout", {"keep_layers": "1", "dropout": 0.5}, {"keep_layers": "1"}),
    ("lora_r", {"keep_layers": "1", "lora_r": 2}, {"keep_layers": "1"}),
    ("lora_alpha", {"keep_layers": "1", "lora_r": 2, "lora_alpha": 40.0}, {"keep_layers": "1", "lora_r": 2}),
    ("lora_dropout", {"keep_layers": "1", "lora_r": 2, "lora_dropout": 0.5}, {"keep_layers": "1", "lora_r": 2}),
    (
        "lora_target_modules",
        {"keep_layers": "1", "lora_r": 2, "lora_target_modules": ["q_proj"]},
        {"keep_layers": "1", "lora_r": 2},
    ),
    (
        "lora_export",
        {"model": "OTHER", "lora_r": 2, "lora_export": "adapter"},
        {"model": "OTHER", "lora_r": 2},
    ),
]
# Tested by name in files of their own.
ELSEWHERE = {
    "kind": "unit/student_worker/test_recipe.py",
    "revision": "unit/test_models.py",
    "torch_compile": "unit/student_worker/students/test_compiled.py",
    "gradient_checkpointing": "integration/student_worker/test_every_key_reaches.py",
}


def test_no_key_that_the_weights_depend_on_is_without_a_test() -> None:
    marked = {name for name, info in Recipe.model_fields.items() if info.json_schema_extra == RESULT}
    assert marked - {"student"} == {name for name, _, _ in AS_IN_PLAIN_TORCH + OTHERS}
    assert set(CausalLMSpec.model_fields) == {name for name, _, _ in STUDENTS} | ELSEWHERE.keys()
    assert [name for name, file in ELSEWHERE.items() if name not in (TESTS / file).read_text(encoding="utf-8")] == []


@pytest.fixture(scope="module")
def trained(train: Train) -> Callable[..., Trained]:
    """Trains with keys, once for equal ones."""
    known: dict[str, Trained] = {}

    def once(keys: Keys) -> Trained:
        name = repr(sorted(keys.items(), key=lambda item: item[0]))
        if name not in known:
            known[name] = train(**keys)
        return known[name]

    return once


@pytest.fixture(scope="module")
def samples(tiny_llama_folder: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return dataset(tiny_llama_folder, texts, tmp_path_factory.mktemp("cache"))


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def num_steps(keys: Keys, samples: PackedDataset) -> int:
    """Return how many steps the lengths of these tests mean, counted one by one."""
    if "num_train_epochs" in keys:
        return -(-int(keys["num_train_epochs"] * len(samples)) // 6)
    if "max_tokens" not in keys:
        return int(keys.get("max_steps", 4))
    from stillhouse.data import Order

    order, tokens, step = Order(len(samples), 7, samples.fingerprint), 0, 0
    while tokens < keys["max_tokens"]:
        tokens += sum(len(samples[int(index)].token_ids) for index in order.sample_ids(step * 6, 6))
        step += 1
    return step


def quick_and_long(cases: list[tuple[str, Any, Keys]]) -> list[Any]:
    """One value of each of some keys in every test run; each is a whole run of a student, or two."""
    return [pytest.param(*case, marks=() if case[:2] in QUICK else pytest.mark.long) for case in cases]


@pytest.mark.parametrize(("key", "value", "beside"), quick_and_long(AS_IN_PLAIN_TORCH))
def test_a_key_does_what_it_does_in_plain_torch(
    trained: Callable[..., Trained],
    samples: PackedDataset,
    tiny_llama_folder: Path,
    key: str,
    value: Any,
    beside: Keys,
) -> None:
    keys = {**beside, key: value}
    run = trained(keys)
    known = {field.name for field in fields(Settings)}
    settings = replace(Settings(), **{name: given for name, given in keys.items() if name in known})
    steps = num_steps(keys, samples)
    assert len(run.steps) == steps
    expected = plain_loop(replace(settings, steps=steps), tiny_llama_folder, samples)
    off = distance(run.weights, expected)
    assert off < 3e-5
    # Without the key the weights are others, by far more than the two loops differ.
    assert distance(run.weights, trained(beside).weights) > max(1e-4, 5 * off)


@pytest.mark.parametrize(("key", "value", "beside"), quick_and_long(OTHERS))
def test_a_key_changes_the_weights(trained: Callable[..., Trained], key: str, value: Any, beside: Keys) -> None:
    with_it, without = trained({**beside, key: value}), trained(beside)
    change = distance(with_it.weights, without.weights)
    assert change > 0
    assert key not in SAME_BUT_FOR_ROUNDING or change < (2e-2 if key == "precision" else 3e-5)


@pytest.mark.long
@pytest.mark.parametrize(("key", "student", "plain"), STUDENTS)
def test_a_key_of_the_student_changes_it(
    trained: Callable[..., Trained],
    other_model_folder: Path,
    config_folder: Path,
    key: str,
    student: Keys,
    plain: Keys,
) -> None:
    folders = {"OTHER": str(other_model_folder), "CONFIG": str(config_folder)}

    def run(spec: Keys) -> Trained:
        return trained({"student": {name: folders.get(str(value), value) for name, value in spec.items()}})

    with_it, without = run(student).weights, run(plain).weights
    assert with_it.keys() != without.keys() or distance(with_it, without) > 0, key


@pytest.fixture
def projected(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What an MLP's first projection came in, each time that it was computed while the student learns."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    original: Any = LlamaMLP.forward
    dtypes: list[torch.dtype] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.training:
            dtypes.append(self.gate_proj(x).dtype)
        result: Tensor = original(self, x)
        return result

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    return dtypes


def test_bfloat16_computes_in_it_and_keeps_the_weights_in_float32(train: Train, projected: list[torch.dtype]) -> None:
    assert {tensor.dtype for tensor in train(precision="bfloat16", max_steps=1).weights.values()} == {torch.float32}
    assert projected == [torch.bfloat16] * 4
    projected.clear()
    train(max_steps=1)
    assert projected == [torch.float32] * 4


def test_each_part_of_a_micro_shard_is_one_forward_pass(train: Train, projected: list[torch.dtype]) -> None:
    train(max_steps=1, micro_shards=2, per_device_train_batch_size=2)
    assert len(projected) == 4  # two shards of three samples: two and one


def test_gradient_checkpointing_computes_activations_twice_and_changes_no_bit(
    train: Train, trained: Callable[..., Trained], projected: list[torch.dtype]
) -> None:
    run = train(student={"keep_layers": "1", "gradient_checkpointing": True})
    assert len(projected) == 2 * 4 * 4
    assert distance(run.weights, trained({}).weights) == 0


def test_full_determinism_allows_no_other_kernels(train: Train, trained: Callable[..., Trained]) -> None:
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        run = train(full_determinism=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert distance(run.weights, trained({}).weights) == 0
