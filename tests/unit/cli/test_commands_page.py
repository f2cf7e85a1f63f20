"""The page on commands shows every verb, and every line on it is one that the command takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from stillhouse.cli.main import build_app

PAGE = Path(__file__).parents[3] / "docs" / "commands.md"


def examples() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every verb that does something, as its words after `stillhouse`."""
    below = getattr(command, "commands", {})
    for name, verb in below.items():
        yield from verbs(verb, (*path, name))
    if not below:
        yield " ".join(path)


@pytest.mark.parametrize("line", examples())
def test_every_example_is_understood(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "stillhouse"
    command: Any = typer.main.get_command(build_app())
    while getattr(command, "commands", None):
        command = command.commands[words.pop(0)]
    # Parses the flags and arguments as the command itself would, and runs nothing.
    command.make_context(command.name, words)


def test_every_verb_has_an_example() -> None:
    shown = examples()
    missing = [
        verb
        for verb in verbs(typer.main.get_command(build_app()))
        if not any(f"{line} ".startswith(f"stillhouse {verb} ") for line in shown)
    ]
    assert missing == []
    assert len(shown) >= 14
