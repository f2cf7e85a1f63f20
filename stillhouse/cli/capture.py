"""`stillhouse capture`: ask a teacher about a whole corpus, once, and keep the answers in a store.

The flags are made from `CaptureSettings` and `DataSpec`, so that name, type and help stand once; those of the corpus
are training's own. Nothing heavy is imported until the verb runs.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from stillhouse.capture.settings import flag_fields, load_settings, variable
from stillhouse.cli.data_flags import data_flags, take_data


def capture(**values: Any) -> None:
    """Keep a teacher's answers about a whole corpus in a store (an offline cache), to train students from without it.

    Killed at any moment and started again with the same command, it goes on where it stood. A token is read from
    CAPTURE_TEACHER_TOKEN.
    """
    given = take_data(values)
    settings = load_settings(values, given, os.environ)
    from stillhouse.capture.run import run

    raise typer.Exit(run(settings))


def _flag(name: str, info: FieldInfo) -> inspect.Parameter:
    dashed = name.replace("_", "-")
    is_switch = info.annotation is bool
    description = " ".join((info.description or "").split())
    option = typer.Option(
        f"--{dashed}/--no-{dashed}" if is_switch and name != "dry_run" else f"--{dashed}",
        help=f"{description} [{variable(name)}{_default(name, info)}]",
        show_default=False,
        metavar=None if is_switch else _metavar(name, info.annotation),
    )
    kind = bool if is_switch else str
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _default(name: str, info: FieldInfo) -> str:
    if info.is_required() or info.default is None:
        return ""
    return "; default: 0/1, all" if name == "part" else f"; default: {info.default}"


def _metavar(name: str, annotation: Any) -> str:
    if name == "part":
        return "I/N"
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    choices = [choice for kind in (annotation, *kinds) if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return "|".join(choices)
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kinds[0], "TEXT")


_PARAMETERS = [*(_flag(name, info) for name, info in flag_fields()), *data_flags()]

# typer reads a command's signature and its annotations: these are made of the settings.
capture.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]  # functions take attributes
capture.__annotations__ = {parameter.name: parameter.annotation for parameter in _PARAMETERS}
