"""What a check has found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Tone = Literal["ok", "note", "problem"]
"""`note`: it works, and somebody should know; `problem`: something will not work, or not as it is meant."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. A problem always says what to do."""

    about: str
    tone: Tone
    said: str
    remedy: str = ""


Check = Callable[[], Iterable[Finding]]


def ok(about: str, said: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(about, "ok", said)


def note(about: str, said: str, remedy: str = "") -> Finding:
    """Return what is worth knowing."""
    return Finding(about, "note", said, remedy)


def problem(about: str, said: str, remedy: str) -> Finding:
    """Return what is wrong, and how to mend it."""
    return Finding(about, "problem", said, remedy)


def run_checks(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Give the findings of each check as they come."""
    for about, check in checks:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - whatever one check meets, the others are still wanted
            said = f"could not be looked at: {type(error).__name__}: {error}"
            yield problem(about, said, "see the message; report it if it makes no sense")
