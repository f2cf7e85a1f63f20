"""`python -m benchmarks list`, `run NAME|all [--quick] [--json FILE] [--results FOLDER]`, and `page`."""

from __future__ import annotations

import ast
import importlib
import json
import time
import traceback
from itertools import groupby
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from benchmarks._result import Result
from benchmarks.report.results import MissingResultError, Results, save

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
    results_folder: Annotated[
        Path | None, typer.Option("--results", help="Write each result into this folder as soon as it is there.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch; by default its own choice.")] = None,
) -> None:
    """Run one benchmark, or all of them; of all, one that fails leaves the others to go on."""
    known = questions()
    if name != "all" and name not in known:
        _refuse(f"there is no benchmark {name!r}; there are: {', '.join(known)}")
    if quick and results_folder is not None:
        _refuse("--quick measures nothing, and --results are for the page: leave one of them out")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    results, failed = [], []
    for chosen in known if name == "all" else [name]:
        began = time.monotonic()
        try:
            result: Result = importlib.import_module(f"benchmarks.{chosen}").measure(quick)
        except Exception:
            if name != "all":
                raise
            traceback.print_exc()
            failed.append(chosen)
            continue
        results.append(result.to_json())
        show(result)
        typer.echo(f"({time.monotonic() - began:.0f} s)\n")
        if results_folder is not None:
            save(result, results_folder)
    if json_file is not None:
        content = results if name == "all" else results[0]
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if failed:
        _refuse(f"failed: {', '.join(failed)}", exit_code=1)


@app.command("page")
def write_the_page() -> None:
    """Write docs/performance.md and its pictures from benchmarks/results."""
    from benchmarks.report.page import write_page

    try:
        write_page(Results())
    except MissingResultError as error:
        _refuse(str(error))


def _refuse(message: str, *, exit_code: int = 2) -> NoReturn:
    typer.echo(f"benchmarks: {message}", err=True)
    raise typer.Exit(exit_code)


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
