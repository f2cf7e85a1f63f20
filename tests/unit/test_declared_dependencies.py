"""What a service imports is what its extra brings: an image with that extra alone has all of it, and by declaration."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"stillhouse", "teacher_service", "student_worker"}
# Of extras that a user adds for one purpose: imported where that purpose is, with a message of their own.
ON_DEMAND = {"datasets", "matplotlib", "peft", "wandb", "tensorboard", "psutil", "jinja2", "opentelemetry"}


def imported(package: str) -> dict[str, str]:
    """Return the outside packages that a package's modules import, each with a module that does."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in (name.partition(".")[0] for name in names):
                if name not in sys.stdlib_module_names and name not in OURS:
                    found.setdefault(name, str(file.relative_to(ROOT)))
    return found


@cache
def needed(requirement: str) -> frozenset[str]:
    """Return the distributions that one requirement brings, itself included, by their normalised names."""
    match = re.match(r"([\w.-]+)\s*(?:\[([\w,\s-]+)\])?", requirement)
    assert match is not None
    name, extras = normal(match[1]), {part.strip() for part in (match[2] or "").split(",")} - {""}
    try:
        listed = requires(name) or []
    except PackageNotFoundError:
        return frozenset({name})
    found = {name}
    for line in listed:
        spec, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if extra is None or extra[1] in extras:
            found |= {normal(spec)} if normal(spec) == name else needed(spec.strip())
    return frozenset(found)


def normal(name: str) -> str:
    match = re.match(r"[\w.-]+", name.strip())
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


@pytest.mark.parametrize(("package", "extra"), [("teacher_service", "teacher"), ("student_worker", "student")])
def test_a_service_declares_all_that_it_imports(package: str, extra: str) -> None:
    # From the file: what is installed may be of an earlier one.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"][extra]]
    brought = frozenset().union(*map(needed, listed))
    owners = packages_distributions()
    missing = {
        name: file
        for name, file in imported(package).items()
        if name not in ON_DEMAND and not any(normal(owner) in brought for owner in owners.get(name, [name]))
    }
    assert missing == {}, f"not in the extra {extra} of pyproject.toml"
