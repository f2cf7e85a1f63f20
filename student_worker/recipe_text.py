"""The schema of a recipe as text: the table of every key, a file to start from, and a JSON schema for editors.

All three are made from the descriptions that stand in the schema. Knows nothing of where values come from.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import PydanticUndefined

from student_worker.recipe import Recipe
from student_worker.recipe_sources import Key, keys


def markdown_table() -> str:
    """Return every key with its default and what it does, as the page docs/recipe.md has it."""
    rows = [f"| `{'.'.join(key.path)}` | {_default(key)} | {_cell(description(key))} |" for key in keys().values()]
    return "\n".join(("| key | default | what it does |", "|---|---|---|", *rows))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema, for an editor's completion and checks."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Stillhouse recipe"} | schema


def description(key: Key) -> str:
    """Return what a key does, in one line."""
    return " ".join((key.info.description or "").split())


def plain(value: object) -> str:
    """Return a value as YAML and JSON both write it."""
    return json.dumps(value, ensure_ascii=False)


def _default(key: Key) -> str:
    if key.info.is_required() and key.path != ("student", "kind"):
        return "required"
    value = "causal_lm" if key.path == ("student", "kind") else key.info.default
    return "" if value is None or value is PydanticUndefined or value == () else _cell(str(value))


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
