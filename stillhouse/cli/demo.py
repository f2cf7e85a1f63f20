"""`stillhouse demo`: watch a real language model teach a smaller one, on a machine with no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output_dir: Annotated[
        Path, typer.Option(help="Where the run, the student and the report go; an earlier demo there is replaced.")
    ] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=10, help="Optimiser steps of the first pass.")] = 40,
    second_pass_steps: Annotated[int, typer.Option(min=1, help="Steps of the pass that the cache answers.")] = 8,
    workers: Annotated[int, typer.Option(min=1, max=8, help="Student workers.")] = 2,
    teacher: Annotated[
        str, typer.Option(help="The teacher: smollm2 (from its PyPI wheel), a folder, a .gguf file or a hub name.")
    ] = "smollm2",
    keep_layers: Annotated[
        str, typer.Option(help="The layers of the teacher that the student starts with, as 0-9,11,13.")
    ] = "0-9,11,13,15,17,19,21,23,25,27,29",
) -> None:
    """Distil a real model through the real services, and write report.html and report.json."""
    from stillhouse.demo.run import DemoSettings, run_demo

    run_demo(
        DemoSettings(
            output_dir=output_dir,
            steps=steps,
            second_pass_steps=min(second_pass_steps, steps),
            workers=workers,
            teacher=teacher,
            keep_layers=keep_layers,
        )
    )
