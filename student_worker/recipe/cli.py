"""`stillhouse student recipe`: begin a recipe, check one, and print its schema. Starts nothing and asks no teacher."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.errors import ConfigurationError
from student_worker.recipe.sources import load_with_origins

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Begin a recipe, check one, print its schema.")

_JSON = typer.Option("--json", help="Print JSON instead.")


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The file to write; one that is there is left alone.")] = Path(
        "recipe.yaml"
    ),
) -> None:
    """Write a recipe to start from, with every key and what it does."""
    from student_worker.recipe.text import starting_file

    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(starting_file())
    except FileExistsError:
        raise ConfigurationError(f"{file} is there already, and was left as it is; name another file") from None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror or error}; name another file") from error
    typer.echo(f"{file} is a recipe to start from. Next: stillhouse student recipe validate {file}")


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="The recipe.")], as_json: Annotated[bool, _JSON] = False
) -> None:
    """Check a recipe, and print it whole with its hash and where every value comes from.

    STUDENT_* variables count, as they do for `student train`. What only the teacher and the data can tell is checked by
    `student train FILE --plan`.
    """
    from student_worker.recipe.text import canonical, effective

    sourced = load_with_origins(file, {}, os.environ)
    if not as_json:
        typer.echo(canonical(sourced))
        return
    values = {".".join(path): value for path, value in effective(sourced.recipe).items()}
    typer.echo(json.dumps({"hash": sourced.recipe.hash, "recipe": values, "origins": dict(sourced.origins)}, indent=2))


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of keys instead.")] = False,
) -> None:
    """Print the JSON schema of a recipe, for an editor's completion and checks."""
    from student_worker.recipe.text import json_schema, markdown_table

    typer.echo(markdown_table() if markdown else json.dumps(json_schema(), indent=2))
