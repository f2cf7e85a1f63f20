"""`stillhouse compare recipe.yaml`: does distillation help this student, and through which encoding?"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.errors import ConfigurationError

OUTCOME_FILE = "comparison.json"
EXIT_START_AGAIN = 1


def compare(
    recipe: Annotated[Path, typer.Argument(help="The recipe that all arms share, as for `student train`.")],
    encodings: Annotated[
        str, typer.Option(help="What to learn from besides the text alone; encodings with commas between them.")
    ] = "hidden,top_k:64,sampled:50",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: the recipe's, the one after it, and so on.")] = 1,
    output_dir: Annotated[Path | None, typer.Option(help="Where the runs go; by default the recipe's.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the result here too, as a page with pictures.")] = None,
) -> None:
    """Train the same student from the same start on the same tokens, with cross-entropy alone and by each encoding.

    Writes comparison.json, comparison.md and the curves. Started again, it goes on where it was interrupted.
    """
    import matplotlib as mpl  # noqa: F401 - better missing now than after hours of training
    from rich.console import Console

    from stillhouse.encoding_text import format_encoding, parse_encodings
    from student_worker.comparison.arms import make_arms
    from student_worker.comparison.curves import draw_curves
    from student_worker.comparison.outcome import read_outcome, verdict
    from student_worker.comparison.page import write_page
    from student_worker.comparison.running import TeacherAwayError, run_arms
    from student_worker.comparison.table import terminal_table
    from student_worker.recipe.sources import load_recipe
    from student_worker.run_folder.journal import write_whole

    if markdown is not None and not markdown.absolute().parent.is_dir():
        raise ConfigurationError(f"--markdown {markdown}: there is no such folder")
    flags = {} if output_dir is None else {"output_dir": str(output_dir)}
    loaded = load_recipe(recipe, flags, os.environ)
    arms = make_arms(
        loaded, [format_encoding(encoding) for encoding in parse_encodings(encodings)], seeds, loaded.output_dir
    )
    token = loaded.teacher_token
    environment = {"STUDENT_TEACHER_TOKEN": token.get_secret_value()} if token else {}
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        run_arms(arms, environment, console)
    except TeacherAwayError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_START_AGAIN) from error
    outcome = read_outcome(arms)
    folder = loaded.output_dir
    write_whole(folder / OUTCOME_FILE, json.dumps(outcome, indent=2) + "\n")
    curves = draw_curves(outcome)
    command = ["stillhouse", "compare", str(recipe), "--encodings", encodings, "--seeds", str(seeds)]
    command += ["--markdown", str(markdown)] if markdown else []
    for page in (folder / "comparison.md", markdown):
        if page is not None:
            write_page(page, outcome, curves, shlex.join(command), recipe.read_text(encoding="utf-8"))
    console.print(terminal_table(outcome))
    console.print(verdict(outcome))
    console.print(f"{folder / OUTCOME_FILE}, {folder / 'comparison.md'}")
