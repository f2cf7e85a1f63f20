"""Values that no run could use are refused by name when the recipe is read, before anybody is asked anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import ConfigurationError
from student_worker.recipe.sources import load_recipe
from tests.unit.student_worker.test_recipe_checks import HELD_OUT, load


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", 1e300),
        ("temperature", 1e-300),
        ("request_timeout_seconds", 1e300),
        ("request_timeout_seconds", 1e-9),
        ("teacher_wait_seconds", 1e300),
        ("step_timeout_seconds", 1e300),
        ("max_steps", 10**24),
        ("max_tokens", 10**24),
        ("num_train_epochs", 1e18),
        ("global_batch_size", 10**12),
        ("prefetch_steps", 10**9),
        ("torch_threads", 10**9),
        ("worker_index", 10**9),
        ("device", "gpu"),
        ("device", "cuda:"),
        ("teacher", "127.0.0.1:99999"),
        ("teacher", "gpu0:abc"),
        ("teacher", "gpu0:0"),
    ],
)
def test_a_value_that_no_run_could_use_is_refused_by_its_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{key}: .*"):
        load(tmp_path, {key: value})


@pytest.mark.parametrize("key", ["http_host", "output_dir", "checkpoint_dir", "tokenizer", "run_name", "teacher_ca"])
def test_an_empty_text_is_no_value(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{key} must not be empty"):
        load(tmp_path, {key: ""})
    with pytest.raises(ConfigurationError, match="student: model must not be empty"):
        load(tmp_path, {"student": {"model": ""}})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"callbacks": ["nope"]}, "callbacks: must be written as module:Class; 'nope' is not"),
        ({"callbacks": ["a:b", "a:b"]}, "callbacks: must name each once; a:b stands twice"),
        ({"report_to": ["wandb", "wandb"]}, "report_to: must name each once"),
        ({**HELD_OUT, "eval_encoding": "sampled:5"}, "eval_encoding: must be auto, hidden, dense or top_k"),
        ({**HELD_OUT, "eval_encoding": "candidates:3,4"}, "eval_encoding: must be auto, hidden, dense or top_k"),
        ({"teacher_key": "own.key"}, "teacher_key needs teacher_certificate"),
        ({"teacher_certificate": "own.pem"}, "teacher_certificate needs teacher_key"),
        ({"student": {"keep_layers": True}}, "student.keep_layers"),
        ({"student": {"keep_layers": "0", "lora_r": 10**12}}, "student.lora_r"),
        ({"studnt": {}}, "studnt: unknown key; did you mean student?"),
        ({"dat": {}}, "dat: unknown key; did you mean data?"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load(tmp_path, values)


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", 4), ("loss", "reverse_kl"), ("encoding", "dense"), ("prefetch_steps", 5)],
)
def test_what_is_asked_of_a_teacher_has_no_effect_where_the_text_alone_teaches(
    tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match=f"{key}: no effect beside alpha 1"):
        load(tmp_path, {"alpha": 1, key: value})
    load(tmp_path, {"alpha": 0.5, key: value})
    load(tmp_path, {"alpha": 1, "temperature": 1.0, "loss": "forward_kl"})


def test_early_stopping_needs_an_evaluation_between_start_and_end(tmp_path: Path) -> None:
    keys = {**HELD_OUT, "early_stopping_patience": 2, "eval_steps": 20}
    with pytest.raises(ConfigurationError, match="early_stopping_patience has no effect: with eval_steps 20"):
        load(tmp_path, {**keys, "max_steps": 20})
    load(tmp_path, {**keys, "max_steps": 21})


def test_brackets_in_brackets_without_end_are_no_recipe(tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text("a: " + "[" * 3000, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="too deep"):
        load_recipe(file, {}, {})
