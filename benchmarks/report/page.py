"""Renders the page from its template: the prose is the template's, every number a result's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks._result import Result, Value
from benchmarks.report.goals import HEADLINES
from benchmarks.report.numbers import number
from benchmarks.report.plots import PLOTS
from benchmarks.report.results import Results

TEMPLATE = "performance.md.j2"
DOCS = Path(__file__).parents[2] / "docs"
PICTURES = "images/performance"

Column = tuple[str, str]
"""Of a table: its heading, and the key of a row that it shows."""


def write_page(results: Results, docs: Path = DOCS) -> None:
    """Write the page and its pictures into the folder of the documentation.

    Raises:
        MissingResultError: a benchmark that the page tells of has not been run.
    """
    text = render(results)
    pictures = docs / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    for name, draw in PLOTS.items():
        (pictures / f"{name}.svg").write_text(draw(results), encoding="utf-8")
    (docs / "performance.md").write_text(text, encoding="utf-8")


def render(results: Results) -> str:
    """Return the page's text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown, of our own numbers
    )
    environment.filters["number"] = number
    return environment.get_template(TEMPLATE).render(
        results_figure=lambda name, key: results.of(name).figures[key],
        headlines=_headlines(results),
        served=partial(_served, results),
        spent=partial(_spent, results),
        made_by=partial(_made_by, results),
        table=_table,
        rows=results.rows,
        gpu_rows=results.on_gpu().rows,
        gpu_figure=lambda name, key: results.on_gpu().of(name).figures[key],
        made_on_gpu=partial(_made_on_gpu, results.on_gpu()),
        pictures=PICTURES,
    )


def _served(results: Results, setting: str, contestant: str) -> Value:
    (row,) = results.rows("serving", setting=setting, contestant=contestant)
    return row["median"]


def _spent(results: Results, contestant: str, what: str, setting: str = "large, MB/s") -> Value:
    """Return what an answer takes of the processor, of the server or of the client."""
    (row,) = results.rows("serving", setting=setting, contestant=contestant)
    return row[what]


def _headlines(results: Results) -> str:
    lines = ["| figure | | measured | goal | |", "|---|---|---|---|---|"]
    for headline in HEADLINES:
        value = results.of(headline.benchmark).figures[headline.figure]
        goal = f"{headline.bound} {number(headline.goal)}" if headline.bound else ""
        verdict = {True: "met", False: "**not met**", None: ""}[headline.is_met(value)]
        name = f"[`{headline.benchmark}`]({headline.link}): `{headline.figure}`"
        lines.append(f"| {name} | {headline.says} | {number(value)} | {goal} | {verdict} |")
    return "\n".join(lines)


def _table(rows: Sequence[dict[str, Value]], columns: Sequence[Column]) -> str:
    head = " | ".join(heading for heading, _ in columns)
    lines = [f"| {head} |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(number(row.get(key)) for _, key in columns) + " |" for row in rows]
    return "\n".join(lines)


def _made_on_gpu(results: Results, name: str) -> str:
    result = results.of(name)
    torch_version = str(result.machine["torch"]).split("+")[0]
    return f"`python -m benchmarks run {name}`, {result.date[:10]}, {result.machine['device']}, torch {torch_version}"


def _made_by(results: Results, name: str) -> str:
    """Return the command that made a result, when, and on what."""
    result: Result = results.of(name)
    command = "make bench-peers" if results.has_peers(name) else f"python -m benchmarks run {name}"
    machine = result.machine
    threads = f"{machine['threads']} threads of {machine['cores']} cores"
    return f"`{command}`, {result.date[:10]}, {machine['cpu']}, {threads}, torch {str(machine['torch']).split('+')[0]}"
