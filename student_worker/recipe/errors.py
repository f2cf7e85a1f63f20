"""What is wrong with a recipe, in one line, with what to write instead where that can be guessed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError

from student_worker.recipe.foreign_keys import instead, nearest

if TYPE_CHECKING:
    from student_worker.recipe.sources import Key

_KINDS = ("fixture", "causal_lm")
"""The kind of a tagged union stands in an error's place too; a reader knows it as no key."""

_PLAINER = {
    "tuple_type": "must be a list, such as [a, b]",
    "bool_parsing": "must be true or false",
}


def explain(error: ValidationError, keys: Mapping[str, Key]) -> str:
    """Say what is wrong with which key.

    Args:
        error: what the schema raised.
        keys: every key of the schema by its flat name.
    """
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        place = [str(part) for part in problem["loc"] if part not in _KINDS]
        key = ".".join(place) or "recipe"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{suggestion(place, keys)}")
        elif problem["type"] == "missing":
            flag = next((known.name for known in keys.values() if list(known.path) == place), place[-1])
            beside = ", or a store by --store" if key in ("teacher", "data") else ""
            lines.append(f"{key}: missing; give it in the recipe or as --{flag.replace('_', '-')}{beside}")
        else:
            message = _PLAINER.get(problem["type"], problem["msg"].removeprefix("Value error, "))
            says_it = isinstance(problem["input"], dict) or repr(problem["input"]) in message
            given = "" if says_it else f"; got {short(problem['input'])}"
            lines.append(f"{key}: {message}{given}")
    return "; ".join(lines)


def suggestion(place: list[str], keys: Mapping[str, Key]) -> str:
    """Return what to write instead of an unknown key, empty where nothing comes near."""
    name = place[-1]
    depth = len(place) - 1
    siblings = list({key.path[depth]: None for key in keys.values() if list(key.path[:depth]) == place[:-1]})
    everywhere = {key.path[-1]: ".".join(key.path) for key in keys.values()}
    if name in siblings:
        return f"; this kind of {place[0]} has none, drop it or name another kind"
    if name in everywhere:
        return f"; it is {everywhere[name]}"
    if (words := instead(name)) is not None:
        return f"; {words}"
    for candidates in (siblings, list(everywhere)):
        if near := difflib.get_close_matches(name, candidates, n=1):
            full = ".".join([*place[:-1], near[0]]) if candidates is siblings else everywhere[near[0]]
            return f"; did you mean {full}?"
    return f"; {words}" if (words := nearest(name)) is not None else ""


def short(value: object) -> str:
    """Return a value for a message: as Python writes it, within 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
