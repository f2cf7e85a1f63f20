"""The arms of a comparison: what each of them changes, and which recipes make none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.errors import ConfigurationError
from student_worker.comparison.arms import CROSS_ENTROPY, make_arms, write_recipe
from student_worker.recipe.schema import Recipe
from student_worker.recipe.sources import load_recipe


def recipe(**keys: Any) -> Recipe:
    values: dict[str, Any] = {
        "teacher": "127.0.0.1:8001",
        "teacher_token": "hush-hush",
        "output_dir": "runs/x",
        "data": {"sources": ["x.txt"], "held_out_samples": 4},
        "student": {"keep_layers": "0-3"},
        **keys,
    }
    return Recipe.model_validate(values)


def test_arms_differ_in_nothing_but_what_is_learnt_from(tmp_path: Path) -> None:
    base = recipe(encoding="top_k:16", top_k_tail="renormalise", alpha=0.3, temperature=2.0, max_steps=9, seed=5)
    arms = make_arms(base, ["hidden", "top_k:64"], 2, tmp_path)
    assert [(arm.name, arm.seed) for arm in arms] == [
        (name, seed) for seed in (5, 6) for name in (CROSS_ENTROPY, "hidden", "top_k:64")
    ]
    assert len({arm.folder for arm in arms} | {arm.file for arm in arms}) == 12
    shared = set(Recipe.model_fields) - {
        "alpha", "encoding", "top_k_tail", "temperature", "seed", "output_dir", "http_port", "teacher_token"
    }  # fmt: skip
    for arm in arms:
        for key in shared:
            assert getattr(arm.recipe, key) == getattr(base, key), key
        assert arm.recipe.alpha == (1.0 if arm.name == CROSS_ENTROPY else 0.3)
    plain, hidden, top_k = (arm.recipe for arm in arms[:3])
    assert (hidden.temperature, top_k.top_k_tail, hidden.top_k_tail) == (2.0, "renormalise", "bucket")
    assert plain.encoding == "auto"


def test_an_arms_file_says_the_same_recipe_and_no_secret(tmp_path: Path) -> None:
    for arm in make_arms(recipe(alpha=0.1), ["sampled:50"], 1, tmp_path):
        write_recipe(arm)
        assert load_recipe(arm.file, {}, {}) == arm.recipe
        assert "hush" not in arm.file.read_text(encoding="utf-8")
        assert yaml.safe_load(arm.file.read_text(encoding="utf-8"))["student"]["keep_layers"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("keys", "encodings", "complaint"),
    [
        ({}, [], "--encodings names none"),
        ({}, ["hidden", "hidden:bf16"], "ask the same"),
        ({}, ["hiden"], "'hiden' is not known"),
        ({"data": {"sources": ["x.txt"]}}, ["hidden"], "held_out_fraction"),
        ({"eval_steps": 0}, ["hidden"], "eval_steps"),
        ({"alpha": 1}, ["hidden"], "alpha is 1"),
        ({"smoke_steps": 2}, ["hidden"], "smoke_steps"),
        ({"loss": "reverse_kl"}, ["hidden", "top_k:64"], "the arm top_k:64 .* cannot be trained"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    keys: dict[str, Any], encodings: list[str], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        make_arms(recipe(**keys), encodings, 1, tmp_path / "none")
    assert not (tmp_path / "none").exists()
