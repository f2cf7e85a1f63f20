"""Keys that have no effect beside the others are refused, and so are other trainers' names, with what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.errors import ConfigurationError
from student_worker.recipe.schema import Recipe
from student_worker.recipe.sources import keys, load_recipe

VALUES: dict[str, Any] = {
    "teacher": "127.0.0.1:8001",
    "output_dir": "runs/x",
    "data": {"sources": ["notes.txt"]},
    "student": {"keep_layers": "0-2"},
}
HELD_OUT = {"data": {"sources": ["notes.txt"], "held_out_samples": 4}}


def load(folder: Path, values: dict[str, Any]) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**VALUES, **values}), encoding="utf-8")
    return load_recipe(file, {}, {})


@pytest.mark.parametrize(
    ("unused", "needed"),
    [
        ({"jsd_beta": 0.5}, {"loss": "jsd"}),
        ({"top_k_tail": "bucket"}, {"encoding": "top_k:8"}),
        ({"eval_steps": 5}, HELD_OUT),
        ({"eval_encoding": "dense"}, HELD_OUT),
        ({"eval_memory_bytes": 1000}, HELD_OUT),
        ({"metric_for_best_model": "kl"}, HELD_OUT),
        ({"load_best_model_at_end": True}, HELD_OUT),
        ({"early_stopping_patience": 2}, {**HELD_OUT, "eval_steps": 5}),
        ({"early_stopping_threshold": 0.1}, {**HELD_OUT, "eval_steps": 5, "early_stopping_patience": 2}),
        ({"run_name": "first"}, {"report_to": ["wandb"]}),
        ({"prefetch_bytes": 1000, "prefetch_steps": 0}, {"prefetch_steps": 1}),
        ({"resume": True, "smoke_steps": 2}, {"smoke_steps": None}),
        ({"export_initial": True, "smoke_steps": 2}, {"smoke_steps": None}),
        ({"per_device_train_batch_size": 3}, {"global_batch_size": 12}),
        ({"device_locks": "locks", "device": "cuda:1"}, {"device": "auto"}),
        ({"reserved_devices": ["GPU-1"]}, {"device_locks": "locks"}),
        ({"share_devices": True}, {"device_locks": "locks"}),
        ({"worker_index": 1, "worker_index_by_lock": True}, {"worker_index_by_lock": False}),
    ],
)
def test_a_key_without_effect_is_refused_and_taken_where_it_has_one(
    tmp_path: Path, unused: dict[str, Any], needed: dict[str, Any]
) -> None:
    key = next(iter(unused))
    with pytest.raises(ConfigurationError, match=rf"{key}.* has no effect"):
        load(tmp_path, unused)
    load(tmp_path, {**unused, **needed})


@pytest.mark.parametrize(
    "values",
    [
        {**HELD_OUT, "eval_steps": 0, "load_best_model_at_end": True},
        {**HELD_OUT, "early_stopping_patience": 2},
        {"student": {"keep_layers": "0", "lora_alpha": 2}},
        {"student": {"config": "c.json", "revision": "main"}},
    ],
)
def test_what_never_happens_makes_its_keys_unused(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="no effect"):
        load(tmp_path, values)


def test_saying_what_is_so_anyway_is_let_be(tmp_path: Path) -> None:
    off = {"load_best_model_at_end": False, "eval_steps": 0, "report_to": [], "run_name": None, "resume": False}
    assert load(tmp_path, off).report_to == ()


@pytest.mark.parametrize("encoding", ["top_k:8", "sampled:5", "candidates:1,2"])
@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
def test_losses_over_the_whole_distribution_refuse_a_part_of_it(tmp_path: Path, loss: str, encoding: str) -> None:
    with pytest.raises(ConfigurationError, match=f"loss {loss} needs the teacher's whole distribution"):
        load(tmp_path, {"loss": loss, "encoding": encoding})
    load(tmp_path, {"loss": loss, "encoding": "hidden"})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gradient_accumulation_steps", "global_batch_size"),
        ("per_device_eval_batch_size", "drop it"),
        ("num_epochs", "it is num_train_epochs"),
        ("lr", "it is learning_rate"),
        ("batch_size", "it is global_batch_size"),
        ("fp16", "precision"),
        ("bf16", "precision: bfloat16"),
        ("logging_dir", "report_to"),
        ("warmup_ratio", "warmup_steps"),
        ("optim", "AdamW"),
        ("gradient_checkpointing", "it is student.gradient_checkpointing"),
        ("torch_compile", "it is student.torch_compile"),
        ("dropout", "it is student.dropout"),
        ("max_seq_length", "it is data.block_size"),
        ("beta", "it is jsd_beta"),
        ("resume_from_checkpoint", "resume: true"),
        ("gradient_acumulation_steps", "if gradient_accumulation_steps is meant"),
    ],
)
def test_another_trainers_key_is_refused_with_the_one_that_does_it_here(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name}: unknown key; .*{said}"):
        load(tmp_path, {name: 1})


def test_no_name_of_another_trainer_is_a_key_here() -> None:
    from student_worker.recipe.foreign_keys import _INSTEAD

    ours = {key.path[-1] for key in keys().values() if len(key.path) == 1}
    assert ours.isdisjoint(_INSTEAD)


@pytest.mark.parametrize("key", ["seed", "alpha", "max_steps", "num_train_epochs", "lora_alpha", "block_size"])
def test_yes_and_no_are_no_numbers(tmp_path: Path, key: str) -> None:
    values: dict[str, Any] = {key: True}
    if len(keys()[key].path) == 2:
        part = keys()[key].path[0]
        values = {part: {**VALUES[part], key: True}}
    with pytest.raises(ConfigurationError, match=f"{key}: must be a number; got true"):
        load(tmp_path, values)


def test_lists_are_asked_for_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"report_to: must be a list, such as \[a, b\]; got 'wandb'"):
        load(tmp_path, {"report_to": "wandb"})


def test_lists_of_choices_can_be_given_by_flag_and_variable() -> None:
    flags = {"teacher": "a:1", "data": ["x"], "output_dir": "r", "keep_layers": "0"}
    assert load_recipe(None, {**flags, "report_to": ["wandb"]}, {}).report_to == ("wandb",)
    both = load_recipe(None, flags, {"STUDENT_REPORT_TO": "tensorboard,wandb"})
    assert both.report_to == ("tensorboard", "wandb")
    with pytest.raises(ConfigurationError, match=r"STUDENT_LR is set.*it is learning_rate"):
        load_recipe(None, flags, {"STUDENT_LR": "1"})


@pytest.mark.parametrize("address", ["nonsense", "ftp://127.0.0.1:8001", "host:"])
def test_addresses_that_lead_nowhere_are_refused_before_anybody_is_waited_for(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^teacher: address must be host:port"):
        load(tmp_path, {"teacher": address})
    with pytest.raises(ConfigurationError, match=r"^lighthouse: .*HOST:PORT"):
        load(tmp_path, {"lighthouse": "nonsense"})
