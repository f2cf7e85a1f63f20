"""The number of threads follows from the machine and the recipe, never from how many workers there are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.errors import ConfigurationError
from student_worker.elastic import threads
from student_worker.elastic.threads import available_cores, settle_threads
from student_worker.recipe.schema import Recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRecipe:
    # Set first, so that what is chosen here is gone afterwards.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(12)))
    monkeypatch.setattr(threads, "CPU_QUOTA", tmp_path / "no-quota")
    set_for_torch: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_for_torch.append)

    def make(**keys: Any) -> Recipe:
        content = {"teacher": "t:1", "student": {"kind": "fixture"}, "data": {"sources": ["a"]}, "micro_shards": 4}
        return Recipe.model_validate({**content, "output_dir": tmp_path / "run", **keys})

    return make


def record(of: Recipe, **identity: str) -> None:
    of.output_dir.mkdir()
    (of.output_dir / "run.json").write_text(json.dumps({"identity": identity}))


def test_the_default_is_the_cores_divided_by_the_most_workers_that_there_can_be(recipe: MakeRecipe) -> None:
    assert settle_threads(recipe()) == 3
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_it_is_one_at_least(recipe: MakeRecipe) -> None:
    assert settle_threads(recipe(micro_shards=16, global_batch_size=16)) == 1


def test_the_recipe_names_it_before_the_environment_does(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert settle_threads(recipe()) == 5
    assert settle_threads(recipe(torch_threads=7)) == 7


def test_a_resumed_run_keeps_the_number_that_it_began_with(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    record(recipe(), torch_threads="2")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert settle_threads(recipe()) == 2
    assert settle_threads(recipe(torch_threads=2)) == 2
    with pytest.raises(ConfigurationError, match=r"torch_threads is 3, but the run in .* began with 2"):
        settle_threads(recipe(torch_threads=3))


def test_a_run_whose_bits_do_not_depend_on_it_may_change_it(recipe: MakeRecipe) -> None:
    record(recipe(), recipe="8c1f")
    assert settle_threads(recipe(torch_threads=3)) == 3


@pytest.mark.parametrize(
    ("quota", "cores"), [("250000 100000\n", 2), ("max 100000\n", 12), ("50000 100000", 1), ("", 12)]
)
def test_a_containers_quota_counts_as_its_cores(
    recipe: MakeRecipe, quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe()
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(threads, "CPU_QUOTA", tmp_path / "cpu.max")
    assert available_cores() == cores
