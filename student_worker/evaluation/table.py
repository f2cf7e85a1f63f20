"""Shows what an evaluation came to, as a table that can be read at a glance. Knows nothing of how it was made."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

NAMES = {
    "cross_entropy": "cross-entropy, nats",
    "perplexity": "perplexity",
    "cross_entropy_teacher": "the teacher's cross-entropy, nats",
    "perplexity_teacher": "the teacher's perplexity",
    "kl": "KL(teacher || student), nats",
    "agreement": "same first choice",
    "calibration_error": "calibration error",
    "calibration_error_teacher": "the teacher's calibration error",
    "num_rows": "predictions",
}
"""In the order in which they are shown; a figure of another name stands after them under its own."""

SHARES = ("agreement", "calibration_error", "calibration_error_teacher")


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the report of `evaluate_student`; a figure that is not known is left out."""
    console = console or Console(soft_wrap=True, highlight=False, markup=False)
    data = report["data"]
    against = f", teacher {report['teacher']} through {report['encoding']}" if report["teacher"] else ", no teacher"
    console.print(f"{report['student']} ({report['student_parameters']:,} parameters){against}")
    part = data["part"].replace("_", "-")
    console.print(
        f"{data['samples']:,} samples, {data['tokens']:,} tokens: {part} part of {', '.join(data['sources'])}"
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    figures = report["figures"]
    for name in (*NAMES, *(name for name in figures if name not in NAMES)):
        if figures.get(name) is not None:
            table.add_row(NAMES.get(name, name), _shown(name, figures[name]))
    console.print(table)


def _shown(name: str, value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if name in SHARES:
        return f"{value:.2%}"
    return f"{value:,.4f}" if abs(value) < 1e4 else f"{value:.3e}"
