"""The page on the recipe lists every key as the schema has it."""

from __future__ import annotations

from pathlib import Path

from student_worker.recipe.sources import keys
from student_worker.recipe.text import description, markdown_table

PAGE = Path(__file__).parents[3] / "docs" / "recipe.md"


def test_the_pages_table_is_what_the_command_prints() -> None:
    assert markdown_table() in PAGE.read_text(encoding="utf-8"), (
        "docs/recipe.md is stale; put in what `stillhouse student recipe schema --markdown` prints"
    )


def test_every_key_says_what_it_does() -> None:
    assert [key.name for key in keys().values() if not description(key)] == []
