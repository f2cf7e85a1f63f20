"""`stillhouse student receipt`: check what a run has left against its receipt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Check what a run has left against its receipt.")


@app.callback()
def _verbs() -> None:
    """Check what a run has left against its receipt."""


@app.command("verify")
def _verify(folder: Annotated[Path, typer.Argument(help="The output_dir of a run.")]) -> None:
    """Hash the export again, and say whether it is what the run wrote; exit code 2 if not."""
    from student_worker.run_folder.receipt import verify

    receipt = verify(folder)
    output, files = receipt["output"], len(receipt["output"]["files"])
    typer.echo(f"{folder / output['folder']} is what the run wrote: weights {output['weights']}, {files} files")
    typer.echo(f"{receipt['status']} after {receipt['steps']} steps and {receipt['tokens']} tokens")
    typer.echo(f"recipe {receipt['recipe']}, data {receipt['data']}, teacher {receipt['teacher']}")
