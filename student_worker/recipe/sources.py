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

from stillhouse.errors import ConfigurationError
from student_worker.recipe.data import RunData
from student_worker.recipe.errors import explain, short, suggestion
from student_worker.recipe.schema import CausalLMSpec, FixtureSpec, Recipe

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
        return typing.get_origin(self.info.annotation) is tuple

    @property
    def is_number(self) -> bool:
        """Whether it holds a number, which yes and no are not."""
        kinds = {self.info.annotation, *typing.get_args(self.info.annotation)}
        return bool(kinds & {int, float}) and not self.is_list

    @property
    def is_secret(self) -> bool:
        """Whether it must not stand in a log."""
        return "Secret" in str(self.info.annotation)


@cache
def keys() -> Mapping[str, Key]:
    """Return every key by its flat name."""
    found: dict[str, Key] = {}
    for name, info in Recipe.model_fields.items():
        parts = {"data": (RunData,), "student": (CausalLMSpec, FixtureSpec)}.get(name)
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


@dataclass(frozen=True, slots=True)
class Sourced:
    """A recipe, and where each of its values comes from, by flat name: a file, a variable, a flag, or the default."""

    recipe: Recipe
    origins: Mapping[str, str]


def load_recipe(file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str]) -> Recipe:
    """Put a recipe together; see `load_with_origins`."""
    return load_with_origins(file, flags, environment).recipe


def load_with_origins(file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str]) -> Sourced:
    """Put a recipe together.

    Args:
        file: YAML; None where everything is given otherwise.
        flags: by flat name; None is a flag that was not given.
        environment: `STUDENT_*` variables are read, and unknown ones refused.

    Raises:
        ConfigurationError: a file that cannot be read, or a key that is unknown, unused, missing or out of range.
    """
    values = _read(file) if file is not None else {}
    origins = {name: str(file) for name, key in keys().items() if _holds(values, key.path)}
    for source, origin in ((_from_environment(environment), _variable), (flags, _flag)):
        for name, value in source.items():
            if value is not None:
                _set(values, keys()[name].path, value)
                origins[name] = origin(name)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(explain(error, keys())) from None
    return Sourced(recipe, types.MappingProxyType(origins))


def _variable(name: str) -> str:
    return f"{ENV_PREFIX}{name.upper()}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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
    except RecursionError:
        raise ConfigurationError(
            f"recipe {str(file)!r} is no recipe: its brackets lie too deep in each other"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"recipe {str(file)!r} must hold a mapping of keys to values")
    for part in ("data", "student"):
        if part in content and not isinstance(content[part], dict):
            raise ConfigurationError(f"recipe {str(file)!r}: {part} must be a mapping; got {short(content[part])}")
    values = {str(key): dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    for key in keys().values():
        # A number that says yes or no would be taken as 1 or 0.
        if key.is_number and isinstance(value := _get(values, key.path), bool):
            raise ConfigurationError(f"{'.'.join(key.path)}: must be a number; got {str(value).lower()}")
    return values


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
            hint = f"; did you mean {_variable(near[0])}?" if near else suggestion([name], keys())
            raise ConfigurationError(f"{variable} is set, but there is no such setting{hint}")
        values[name] = [part for part in text.split(",") if part] if keys()[name].is_list else text
    return values


def _get(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return the value at a place, None where there is none."""
    found: Any = values
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _holds(values: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    return _get(values, path) is not None


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value
