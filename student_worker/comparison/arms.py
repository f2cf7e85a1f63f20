"""The arms of a comparison: one recipe, changed in nothing but what is learnt from.

Seed, data, order, steps, learning rate and start are the recipe's own in every arm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stillhouse.encoding_text import parse_encoding
from stillhouse.encodings import Candidates, TopK
from stillhouse.errors import ConfigurationError
from student_worker.recipe.checks import holds_out
from student_worker.recipe.errors import explain
from student_worker.recipe.schema import Recipe
from student_worker.recipe.sources import keys
from student_worker.run_folder.journal import write_whole

CROSS_ENTROPY = "cross_entropy"
"""The name of the arm that learns from the labels alone."""

SECRETS = ("teacher_token", "run_token", "http_token")

_OF_A_TEACHER = ("encoding", "top_k_tail", "loss", "jsd_beta", "temperature")
"""Keys with no effect where cross-entropy has all the weight."""

_NOT_OF_AN_ARM = ("resume", "logging_steps", "worker_index", "local_workers", *SECRETS)
"""A comparison says these itself: every step is written down, since its time and bytes are added up."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One training: what it learns from, its seed, its recipe, and where its recipe is written."""

    name: str
    seed: int
    recipe: Recipe
    file: Path

    @property
    def folder(self) -> Path:
        """The folder of its run."""
        return self.recipe.output_dir

    @property
    def title(self) -> str:
        """The arm in words, for people."""
        return f"{self.name}, seed {self.seed}"


def make_arms(recipe: Recipe, encodings: Sequence[str], num_seeds: int, folder: Path) -> list[Arm]:
    """Return every arm, seed by seed, the one without a teacher first.

    Raises:
        ConfigurationError: a recipe of which nothing could be compared, or an encoding that it cannot learn from.
    """
    if not encodings:
        raise ConfigurationError("--encodings names none; give at least one, such as hidden,top_k:64,sampled:50")
    known = [repr(parse_encoding(text)) for text in encodings]
    twice = [text for text, name in zip(encodings, known, strict=True) if known.count(name) > 1]
    if twice:
        raise ConfigurationError(f"--encodings names {' and '.join(twice)}, which ask the same; drop one")
    if not holds_out(recipe) or recipe.eval_steps == 0:
        raise ConfigurationError(
            "a comparison is made on held-out text: give data.held_out_fraction, held_out_samples or held_out_sources, "
            "and let eval_steps be above 0"
        )
    if recipe.alpha == 1:
        raise ConfigurationError("alpha is 1, so that no arm would learn from its teacher; lower it, for example to 0")
    for name in ("lighthouse", "smoke_steps"):
        if getattr(recipe, name) is not None:
            raise ConfigurationError(f"{name} has no place in a comparison, whose arms are whole runs of one worker")
    return [
        _arm(recipe, name, recipe.seed + number, folder)
        for number in range(num_seeds)
        for name in (CROSS_ENTROPY, *encodings)
    ]


def write_recipe(arm: Arm) -> None:
    """Write the arm's recipe where `student train` reads it; secrets stay out."""
    values = arm.recipe.model_dump(mode="json", exclude_unset=True, exclude=set(SECRETS))
    write_whole(arm.file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _arm(recipe: Recipe, name: str, seed: int, folder: Path) -> Arm:
    values: dict[str, Any] = recipe.model_dump(mode="json", exclude_unset=True, exclude=set(_NOT_OF_AN_ARM))
    place = f"{re.sub(r'[^a-z0-9_]+', '-', name)}-{seed}"
    values |= {"seed": seed, "output_dir": str(folder / place), "http_port": 0}
    if name == CROSS_ENTROPY:
        values["alpha"] = 1.0
        for key in _OF_A_TEACHER:
            values.pop(key, None)
    else:
        values["encoding"] = name
        if not isinstance(parse_encoding(name), TopK | Candidates):
            values.pop("top_k_tail", None)
    try:
        return Arm(name, seed, Recipe.model_validate(values), folder / f"{place}.yaml")
    except ValidationError as error:
        raise ConfigurationError(f"the arm {name} of this recipe cannot be trained: {explain(error, keys())}") from None
