"""`python -m benchmarks list` and `python -m benchmarks run NAME|all [--quick] [--json FILE]`."""

from __future__ import annotations

import ast
import importlib
import json
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks._result import Result

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
FOLDER = Path(__file__).parent
PIPE_COLUMNS = 200


def questions() -> dict[str, str]:
    """Return each benchmark's name and the question it answers, read without importing it."""
    files = sorted(path for path in FOLDER.glob("*.py") if not path.name.startswith("_"))
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


@app.command("list")
def list_benchmarks() -> None:
    """List the benchmarks and the question that each answers."""
    for name, question in questions().items():
        typer.echo(f"{name:<16} {question}")


@app.command("run")
def run_benchmarks(
    name: Annotated[str, typer.Argument(help="A name of `list`, or `all`.")],
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few rounds: to see that it runs.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result there; with `all`, a list of results.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch; by default its own choice.")] = None,
) -> None:
    """Run one benchmark, or all of them."""
    known = questions()
    if name != "all" and name not in known:
        typer.echo(f"benchmarks: there is no benchmark {name!r}; there are: {', '.join(known)}", err=True)
        raise typer.Exit(2)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    results = []
    for chosen in known if name == "all" else [name]:
        result: Result = importlib.import_module(f"benchmarks.{chosen}").measure(quick)
        results.append(result.to_json())
        show(result)
    if json_file is not None:
        content = results if name == "all" else results[0]
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def show(result: Result) -> None:
    """Print the table, a part for each kind of row, and the headline figures."""
    # Where nobody says how wide it is, as in a pipe, nothing need be folded.
    console = Console() if Console().is_terminal else Console(width=PIPE_COLUMNS)
    console.print(f"{result.name}: {result.rounds} rounds, {result.machine['cpu']}")
    for keys, rows in groupby(result.rows, key=tuple):
        table = Table(*keys)
        for row in rows:
            table.add_row(*("" if row[key] is None else str(row[key]) for key in keys))
        console.print(table)
    for figure, value in result.figures.items():
        console.print(f"{figure}: {value:.4g}")


if __name__ == "__main__":
    app()
