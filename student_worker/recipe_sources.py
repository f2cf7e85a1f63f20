"""Where a recipe's values come from: a flag wins over the environment, and that over the file.

Every key of the schema has one flat name, its flag and its variable: `learning_rate`, `--learning-rate`,
`STUDENT_LEARNING_RATE`. The parts `data` and `student` are mappings in the file; outside it their keys stand by
themselves (`--block-size`, `--keep-layers`), and `--data` and `--student` name the sources and the kind.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from stillhouse.data import DataSpec
from stillhouse.errors import ConfigurationError
from student_worker.recipe import CausalLMSpec, FixtureSpec, Recipe

ENV_PREFIX = "STUDENT_"

SERVICE_LINK = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT|PORT_\d+_(TCP|UDP)(_.*)?)")
"""What Kubernetes puts into every pod's environment for a service called `student-...`: no setting of ours."""

_FLAT_NAMES = {("data", "sources"): "data", ("student", "kind"): "student"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the schema: its flat name, its place in the recipe, and what the schema says of it."""

    name: str
    path: tuple[str, ...]
    info: FieldInfo

    @property
    def is_switch(self) -> bool:
        """Whether it is a yes or no, given as `--name` or `--no-name`."""
        return self.info.annotation is bool

    @property
    def is_list(self) -> bool:
        """Whether it holds several texts, each given by the flag once more."""
        return typing.get_args(self.info.annotation)[:1] == (str,) and typing.get_origin(self.info.annotation) is tuple

    @property
    def is_secret(self) -> bool:
        """Whether it must not stand in a log."""
        return "Secret" in str(self.info.annotation)


@cache
def keys() -> Mapping[str, Key]:
    """Return every key by its flat name."""
    found: dict[str, Key] = {}
    for name, info in Recipe.model_fields.items():
        parts = {"data": (DataSpec,), "student": (CausalLMSpec, FixtureSpec)}.get(name)
        if parts is None:
            found[name] = Key(name, (name,), info)
            continue
        for part in parts:
            for inner, inner_info in part.model_fields.items():
                flat = _FLAT_NAMES.get((name, inner), inner)
                if flat in found and found[flat].path != (name, inner):
                    raise AssertionError(f"two keys of the recipe have the flat name {flat}")
                found[flat] = Key(flat, (name, inner), inner_info)
    return types.MappingProxyType(found)


def load_recipe(file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str]) -> Recipe:
    """Put a recipe together.

    Args:
        file: YAML; None where everything is given otherwise.
        flags: by flat name; None is a flag that was not given.
        environment: `STUDENT_*` variables are read, and unknown ones refused.

    Raises:
        ConfigurationError: a file that cannot be read, or a key that is unknown, missing or out of range.
    """
    values = _read(file) if file is not None else {}
    for source in (_from_environment(environment), flags):
        for name, value in source.items():
            if value is not None:
                _set(values, keys()[name].path, value)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """Say in one line what is wrong with which key, and what to write instead where that can be guessed."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        # The kind of a tagged union stands in the place too; a reader knows it as no key.
        place = [str(part) for part in problem["loc"] if part not in ("fixture", "causal_lm")]
        key = ".".join(place) or "recipe"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{_suggestion(place)}")
        elif problem["type"] == "missing":
            flag = next((known.name for known in keys().values() if list(known.path) == place), place[-1])
            lines.append(f"{key}: missing; give it in the recipe or as --{flag.replace('_', '-')}")
        else:
            given = "" if isinstance(problem["input"], dict) else f"; got {_short(problem['input'])}"
            lines.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}{given}")
    return "; ".join(lines)


def _suggestion(place: list[str]) -> str:
    siblings = [key.path[-1] for key in keys().values() if list(key.path[:-1]) == place[:-1]]
    everywhere = {key.path[-1]: ".".join(key.path) for key in keys().values()}
    near = difflib.get_close_matches(place[-1], siblings, n=1)
    if near == place[-1:]:
        return f"; this kind of {place[0]} has none, drop it or name another kind"
    if near:
        return f"; did you mean {'.'.join([*place[:-1], near[0]])}?"
    if place[-1] in everywhere:
        return f"; it is {everywhere[place[-1]]}"
    far = difflib.get_close_matches(place[-1], everywhere, n=1)
    return f"; did you mean {everywhere[far[0]]}?" if far else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _OneOfEach(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML forbids it, and the loader would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} stands twice", problem_mark=node.start_mark)
        return dict(super().construct_mapping(node, deep))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _OneOfEach)  # noqa: S506 - a safe loader, and stricter
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"recipe {str(file)!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"recipe {str(file)!r} is no YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"recipe {str(file)!r} must hold a mapping of keys to values")
    for part in ("data", "student"):
        if part in content and not isinstance(content[part], dict):
            raise ConfigurationError(f"recipe {str(file)!r}: {part} must be a mapping; got {_short(content[part])}")
    return {str(key): dict(value) if isinstance(value, dict) else value for key, value in content.items()}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in keys():
            if SERVICE_LINK.fullmatch(variable):
                continue
            near = difflib.get_close_matches(name, keys(), n=1)
            hint = f"; did you mean {ENV_PREFIX}{near[0].upper()}?" if near else ""
            raise ConfigurationError(f"{variable} is set, but there is no such setting{hint}")
        values[name] = text.split(",") if keys()[name].is_list else text
    return values


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value
