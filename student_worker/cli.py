"""`stillhouse student train`, which is `python -m student_worker train`: every key of the recipe is a flag.

The flags are made from the schema itself, so that name, type and help stand once. Nothing heavy is imported until a
verb runs.
"""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.errors import ConfigurationError
from student_worker.receipt_cli import app as receipt_app
from student_worker.recipe.cli import app as recipe_app
from student_worker.recipe.schema import Recipe
from student_worker.recipe.sources import ENV_PREFIX, Key, keys, load_recipe

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Train a student from its teacher."
)

app.add_typer(recipe_app, name="recipe")
app.add_typer(receipt_app, name="receipt")


@app.callback()
def _verbs() -> None:
    """Train a student from its teacher."""


def _train(
    recipe: Path | None = None, workers: int = 1, plan: bool = False, as_json: bool = False, **flags: Any
) -> None:
    """Train a student: alpha weighs cross-entropy, 1 - alpha weighs KL to the teacher.

    Keys come from flags, from STUDENT_* variables and from the recipe, in this order.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != []}
    loaded = load_recipe(recipe, given, os.environ)
    if as_json and not plan:
        raise ConfigurationError("--json has no effect without --plan; drop it")
    _check_workers(workers, loaded)
    if plan:
        from student_worker.planning.view import show_plan

        show_plan(loaded, workers=workers, as_json=as_json)
        return
    if workers == 1:
        from student_worker.places import placed

        with placed(loaded) as own:
            from student_worker.run import run

            raise typer.Exit(run(own))
    from student_worker.elastic.launch import run_local
    from student_worker.places import gpus_of_their_own
    from student_worker.run_folder.output import check_output_dir, own_folder

    if loaded.worker_index_by_lock:
        raise ConfigurationError("--workers numbers its workers itself; drop worker_index_by_lock")
    if "worker_index" in given:
        raise ConfigurationError("--workers numbers its workers itself; drop --worker-index")
    check_output_dir(loaded)
    argv = _worker_argv(recipe, given)
    log_dir = own_folder(loaded).output_dir / "logs"
    together = {f"{ENV_PREFIX}LOCAL_WORKERS": str(workers), **gpus_of_their_own(loaded)}
    raise typer.Exit(run_local(workers, argv, log_dir=log_dir, lighthouse=loaded.lighthouse, environment=together))


def _check_workers(workers: int, recipe: Recipe) -> None:
    if workers > recipe.micro_shards:
        raise ConfigurationError(
            f"--workers {workers} is more than the {recipe.micro_shards} parts of a global batch, so that some would "
            "have nothing to do; raise micro_shards"
        )


@app.command("lighthouse")
def _lighthouse(
    host: Annotated[str, typer.Option(help="The address to bind to: of the workers' own network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Its port; 0 takes a free one.")] = 29510,
    ready_file: Annotated[Path | None, typer.Option(help="Write the address here once it is bound.")] = None,
) -> None:
    """Run the lighthouse where workers on several hosts meet, until SIGTERM or Ctrl-C."""
    from student_worker.elastic.lighthouse import serve

    raise typer.Exit(serve(host, port, ready_file=ready_file))


def _worker_argv(recipe: Path | None, flags: dict[str, Any]) -> list[str]:
    """Return the command of one worker: the same recipe and flags, by itself."""
    argv = [sys.executable, "-m", "student_worker", "train", *([str(recipe)] if recipe else [])]
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if keys()[name].is_switch:
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            argv += [f"--{flag}={text}" for text in (value if isinstance(value, list) else [value])]
    return argv


def _parameters() -> list[inspect.Parameter]:
    recipe = Annotated[Path | None, typer.Argument(help="A YAML file with the keys below.", show_default=False)]
    workers = Annotated[int, typer.Option("--workers", min=1, help="Workers on this host, one process each.")]
    plan = Annotated[bool, typer.Option("--plan", help="Check everything, say what the run would take, and leave.")]
    as_json = Annotated[bool, typer.Option("--json", help="With --plan: print it as JSON.")]
    return [
        inspect.Parameter("recipe", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=recipe),
        inspect.Parameter("workers", inspect.Parameter.KEYWORD_ONLY, default=1, annotation=workers),
        inspect.Parameter("plan", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=plan),
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=as_json),
        *(
            inspect.Parameter(key.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(key))
            for key in keys().values()
            if not key.is_secret
        ),
    ]


def _annotation(key: Key) -> Any:
    flag = f"--{key.name.replace('_', '-')}"
    switch = f"{flag}/--no-{key.name.replace('_', '-')}" if key.is_switch else flag
    description = " ".join((key.info.description or _PARTS[key.name]).split())
    default = "" if key.info.is_required() or key.info.default is None else f"; default: {key.info.default}"
    help_text = f"{description} [{ENV_PREFIX}{key.name.upper()}{default}]"
    kind: Any = bool if key.is_switch else list[str] if key.is_list else str
    return Annotated[kind | None, typer.Option(switch, help=help_text, show_default=False)]


_PARTS = {"student": "What kind of student: causal_lm or fixture."}

# typer reads a command's signature and its annotations: these are made of the schema.
_train.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]  # functions take attributes
_train.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters()}
app.command("train")(_train)
