"""The page on training names every key of the recipe, with its default and its help text."""

from __future__ import annotations

from pathlib import Path

from student_worker.recipe_sources import keys

PAGE = Path(__file__).parents[3] / "docs" / "training.md"


def test_the_page_lists_every_key_as_the_schema_has_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for key in keys().values():
        text = " ".join((key.info.description or "").split()).replace("|", r"\|")
        row = next((line for line in page.splitlines() if line.startswith(f"| `{'.'.join(key.path)}` |")), "")
        assert row.endswith(f"| {text} |"), f"docs/training.md: the row of {'.'.join(key.path)} should say: {text}"
        assert text, f"{key.name} has no description"
