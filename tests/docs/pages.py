"""The pages as tests read them: their fences, the commands in these, and the commands that their prose names.

Knows nothing of what a command does.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

PROGRAMS = (
    "stillhouse", "make", "python", "pip", "docker", "docker-compose", "kubectl", "promtool", "curl", "openssl",
)  # fmt: skip
"""What a code span in prose begins with where it is a command that a reader may type."""

_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, its text, and the line of the page at which its text begins."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command as the page has it.

    Attributes:
        text: what a shell is given, lines that go on and comments included.
        output: what the page shows below it.
        whole: whether it stands in a fence, to be copied, and not in a sentence that only names it.
    """

    page: str
    line: int
    text: str
    output: str = ""
    whole: bool = True

    def __str__(self) -> str:
        """Where it stands, and how it begins: a test's name."""
        return f"{self.page}:{self.line}: {' '.join(self.text.split())[:60]}"


def words_of(text: str) -> list[str]:
    """Return a command's words as a shell would make them, without its comment."""
    return shlex.split(re.sub(r"\\\n *", " ", text), comments=True)


@cache
def text_of(page: str) -> str:
    """Return a page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def fences(page: str, *languages: str) -> tuple[Fence, ...]:
    """Return the fenced blocks of a page, of all languages or of those named."""
    text = text_of(page)
    found = [
        Fence(page, text.count("\n", 0, match.start(3)) + 1, match[2].strip(), match[3])
        for match in _FENCE.finditer(text)
    ]
    return tuple(fence for fence in found if not languages or fence.language in languages)


def prose(page: str) -> str:
    """Return a page without its fences, line for line where it was."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text_of(page))


def spans(page: str) -> list[tuple[int, str]]:
    """Return the code spans of a page's prose and tables, each with its line; a span of two lines is one."""
    text = prose(page)
    return [(text.count("\n", 0, match.start()) + 1, " ".join(match[1].split())) for match in _SPAN.finditer(text)]


@cache
def commands(page: str) -> tuple[Command, ...]:
    """Return all commands of a page: those to copy in their order, then those that its sentences name."""
    whole = [command for fence in fences(page) for command in _of_fence(fence)]
    named = [
        Command(page, line, span, whole=False)
        for line, span in spans(page)
        if any(span.startswith(f"{program} ") for program in PROGRAMS)
    ]
    return (*whole, *named)


def _of_fence(fence: Fence) -> list[Command]:
    if fence.language == "sh":
        return [Command(fence.page, fence.line, fence.text)]
    if fence.language != "console":
        return []
    found: list[Command] = []
    goes_on = False
    for number, line in enumerate(fence.text.splitlines()):
        if line.startswith("$ "):
            found.append(Command(fence.page, fence.line + number, line[2:]))
        elif found:
            last = found[-1]
            text, output = (f"{last.text}\n{line}", "") if goes_on else (last.text, f"{last.output}{line}\n")
            found[-1] = Command(last.page, last.line, text, output)
        goes_on = line.endswith("\\")
    return found
