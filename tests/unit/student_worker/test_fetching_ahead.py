"""How far ahead answers are fetched where the recipe does not say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stillhouse.fixtures import FixtureTeacher
from stillhouse.request import TeacherDescription
from student_worker.fetching_ahead import PREFETCH_STEPS, prefetch_steps
from student_worker.recipe.schema import Recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
HERE, ELSEWHERE = "127.0.0.1:8001", "teacher:8001"


def recipe(**keys: Any) -> Recipe:
    data = {} if "store" in keys else {"data": {"sources": ["builtin:pydoc-topics"]}}
    return Recipe.model_validate({"teacher": HERE, "output_dir": "run", "student": {"kind": "fixture"}, **data, **keys})


def teacher(device_kind: str) -> TeacherDescription:
    return replace(FixtureTeacher(16).describe(), device_kind=device_kind)


@pytest.mark.parametrize("kind", ["cpu", "cpu x 2"])
@pytest.mark.parametrize("address", [HERE, "localhost:8001", "[::1]:8001", "unix:/run/teacher"])
def test_nothing_is_fetched_ahead_where_both_compute_on_this_hosts_cpu(kind: str, address: str) -> None:
    assert prefetch_steps(recipe(teacher=address), teacher(kind), CPU) == 0


@pytest.mark.parametrize(
    ("keys", "kind", "device"),
    [
        ({"teacher": ELSEWHERE}, "cpu", CPU),
        ({}, "NVIDIA H100 80GB HBM3", CPU),
        ({}, "NVIDIA H100 80GB HBM3 + cpu", CPU),
        ({}, "cpu", GPU),
        ({}, "", CPU),
        ({"store": "store"}, "cpu", CPU),
        ({"store": "store", "teacher": None}, "", CPU),
    ],
    ids=["another host", "a GPU", "in part a GPU", "a student on a GPU", "nobody says", "store first", "store alone"],
)
def test_steps_are_fetched_ahead_of_whoever_computes_elsewhere(
    keys: dict[str, Any], kind: str, device: torch.device
) -> None:
    assert prefetch_steps(recipe(**keys), teacher(kind), device) == PREFETCH_STEPS


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("address", [HERE, ELSEWHERE])
def test_what_the_recipe_says_holds(steps: int, address: str) -> None:
    assert prefetch_steps(recipe(teacher=address, prefetch_steps=steps), teacher("cpu"), CPU) == steps
