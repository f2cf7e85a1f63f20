"""The page on commands shows every verb. That each line on it is one that runs, `tests/docs` sees to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from stillhouse.cli.main import build_app
from tests.docs.pages import commands


def examples() -> list[str]:
    return [command.text.replace("\\\n", " ") for command in commands("docs/commands.md") if command.whole]


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every verb that does something, as its words after `stillhouse`."""
    below = getattr(command, "commands", {})
    for name, verb in below.items():
        yield from verbs(verb, (*path, name))
    if not below:
        yield " ".join(path)


def test_every_verb_has_an_example() -> None:
    shown = examples()
    missing = [
        verb
        for verb in verbs(typer.main.get_command(build_app()))
        if not any(f"{line} ".startswith(f"stillhouse {verb} ") for line in shown)
    ]
    assert missing == []
    assert len(shown) >= 14
