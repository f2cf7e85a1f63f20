"""A recipe as text: the table of every key, a file to start from, a JSON schema, and one recipe with its origins.

All are made from the schema and its descriptions. Knows nothing of where values come from.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import PydanticUndefined

from student_worker.recipe.checks import unused_keys
from student_worker.recipe.schema import Recipe
from student_worker.recipe.sources import Key, Sourced, keys

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
WIDTH = 100

STARTING_VALUES: Mapping[tuple[str, ...], Any] = {
    ("teacher",): "127.0.0.1:8001",
    ("output_dir",): "runs/first",
    ("data", "sources"): ["builtin:pydoc-topics"],
    ("data", "held_out_fraction"): 0.02,
    ("student", "kind"): "causal_lm",
    ("student", "keep_layers"): "0-9,11,13,15,17,19,21,23,25,27,29",
    ("max_steps",): 200,
    ("eval_steps",): 50,
}
"""What a new file says: half of SmolLM2's layers, on text that every Python brings along."""

_OF_A_PROCESS = ("worker_index", "worker_index_by_lock", "local_workers")
"""Set by the launcher, for one worker: a file is for all of them."""


def markdown_table() -> str:
    """Return every key with its default and what it does, as the page docs/recipe.md has it."""
    rows = [f"| `{'.'.join(key.path)}` | {_default(key)} | {_cell(description(key))} |" for key in keys().values()]
    return "\n".join(("| key | default | what it does |", "|---|---|---|", *rows))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema, for an editor's completion and checks."""
    schema = Recipe.model_json_schema()
    return {"$schema": SCHEMA_DIALECT, **schema, "title": "Stillhouse recipe"}


def starting_file() -> str:
    """Return a valid recipe to begin with, in which every other key stands as a comment with its default."""
    lines = [
        "# A recipe of Stillhouse. `stillhouse student recipe validate FILE` checks it, and",
        "# `stillhouse student train FILE --plan` says what it would take; without --plan, it is run.",
        "# Keys that begin with # have their defaults. One that has no effect beside the others is refused.",
    ]
    part: tuple[str, ...] = ()
    for key in sorted(keys().values(), key=_place):
        if key.is_secret or key.name in _OF_A_PROCESS or key.name in ("vocabulary_size", "initial_value"):
            continue
        if key.path[:-1] != part:
            part = key.path[:-1]
            lines += ["", f"{part[0]}:"]
        lines += ["", *_entry(key)]
    return "\n".join(lines) + "\n"


def canonical(sourced: Sourced) -> str:
    """Return a recipe as YAML with every value that has an effect, and where each comes from."""
    flat = effective(sourced.recipe)
    lines = [f"# hash {sourced.recipe.hash}"]
    part: tuple[str, ...] = ()
    for key in sorted((key for key in keys().values() if key.path in flat), key=_place):
        if key.path[:-1] != part:
            part = key.path[:-1]
            lines.append(f"{part[0]}:")
        line = f"{'  ' * len(part)}{key.path[-1]}: {plain(flat[key.path])}"
        lines.append(f"{line}  # {sourced.origins.get(key.name, 'default')}")
    return "\n".join(lines)


def effective(recipe: Recipe) -> dict[tuple[str, ...], Any]:
    """Return every value by its place, as JSON holds it, without keys that are not set, or have no effect."""
    values = recipe.model_dump(mode="json", exclude=set(unused_keys(recipe)))
    adapts = values["student"].get("lora_r") is not None
    found = {}
    for key in keys().values():
        if key.name.startswith("lora_") and not adapts:
            continue
        if recipe.reads_store and key.path[0] == "data" and key.path[1] not in recipe.data.model_fields_set:
            continue
        value: Any = values
        for name in key.path:
            value = value.get(name) if isinstance(value, dict) else None
        if value not in (None, []):
            found[key.path] = value
    return found


def description(key: Key) -> str:
    """Return what a key does, in one line."""
    return " ".join((key.info.description or "").split())


def plain(value: object) -> str:
    """Return a value as YAML and JSON both write it."""
    return json.dumps(value, ensure_ascii=False)


def _place(key: Key) -> int:
    """Keys of the recipe itself come first, and those of its parts after them, together."""
    return 0 if len(key.path) == 1 else 1 + ("data", "student").index(key.path[0])


def _entry(key: Key) -> Iterator[str]:
    indent = "  " * (len(key.path) - 1)
    comment = f"{indent}# "
    yield from textwrap.wrap(description(key), WIDTH, initial_indent=comment, subsequent_indent=comment)
    if key.path in STARTING_VALUES:
        yield f"{indent}{key.path[-1]}: {plain(STARTING_VALUES[key.path])}"
    else:
        yield f"{indent}# {key.path[-1]}: {plain(key.info.default)}"


def _default(key: Key) -> str:
    if key.path == ("student", "kind"):
        return "causal_lm"
    if key.info.is_required():
        return "required"
    value = key.info.default
    return "" if value is None or value is PydanticUndefined or value == () else _cell(str(value))


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
