"""A comparison as a table: on a terminal, and in markdown. Knows nothing of how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

COLUMNS = (
    "learnt from",
    "cross-entropy",
    "perplexity",
    "KL to the teacher",
    "same first choice",
    "training, s",
    "of it waiting, s",
    "bytes a token",
)

NAMES = {"cross_entropy": "the text alone"}


def rows(outcome: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells: teacher, the student before, and each arm at its end."""
    teacher, start = outcome["teacher_figures"], outcome["arms"][0]["start"]
    theirs = (_number(teacher.get("cross_entropy"), 3), _number(teacher.get("perplexity"), 1), "0", "")
    return [
        ("(the teacher)", *theirs, "", "", ""),
        ("(the student before)", *_figures(start), "", "", ""),
        *(
            (
                NAMES.get(line["name"], line["name"]),
                *_figures(line),
                f"{line['training_seconds']:.0f}",
                f"{line['teacher_wait_seconds']:.0f}",
                f"{line['bytes_per_token']:,.0f}",
            )
            for line in outcome["summary"]
        ),
    ]


def terminal_table(outcome: dict[str, Any]) -> Table:
    """Return the table for a console."""
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for cells in rows(outcome):
        table.add_row(*cells)
    return table


def markdown_table(outcome: dict[str, Any]) -> str:
    """Return the table in markdown."""
    lines = [COLUMNS, ("---", *("---:" for _ in COLUMNS[1:])), *rows(outcome)]
    return "\n".join(_markdown_row(cells) for cells in lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _figures(line: dict[str, Any]) -> tuple[str, ...]:
    places = {"cross_entropy": 3, "perplexity": 1, "kl": 3}
    cells = [_number(line.get(name), digits, line.get(f"{name}_spread")) for name, digits in places.items()]
    return (*cells, "" if line.get("agreement") is None else f"{line['agreement']:.1%}")


def _number(value: float | None, digits: int, spread: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:,.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
