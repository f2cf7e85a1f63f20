"""`stillhouse teacher serve`, which is `python -m teacher_service`: every setting that is no secret is a flag.

The flags are made from the settings themselves, so that name, type and help stand once. Imports nothing heavy.
"""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from teacher_service.settings import ENV_PREFIX, NOT_FLAGS, TeacherSettings, load_settings

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Serve a teacher's logits."
)


@app.callback()
def _verbs() -> None:
    """Serve a teacher's logits."""


def _serve(**flags: Any) -> None:
    """Serve a teacher over gRPC and HTTP until SIGTERM or Ctrl-C."""
    settings = load_settings(flags)
    from teacher_service.process import run

    raise typer.Exit(run(settings))


def _flags() -> list[inspect.Parameter]:
    parameters = []
    for name, field in TeacherSettings.model_fields.items():
        if name in NOT_FLAGS:
            continue
        flag = f"--{name.replace('_', '-')}"
        switch = f"{flag}/--no-{name.replace('_', '-')}" if field.annotation is bool else flag
        description = " ".join((field.description or "").split())
        option = typer.Option(
            switch,
            help=f"{description} [{ENV_PREFIX}{name.upper()}{_default(field.default)}]",
            show_default=False,
            metavar=_metavar(field.annotation),
        )
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[_flag_type(field.annotation), option],
            )
        )
    return parameters


def _default(value: object) -> str:
    return "" if value is None else f"; default: {value}"


def _metavar(annotation: Any) -> str | None:
    if annotation is bool:
        return None
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    kinds = {kind.__name__ for kind in (get_args(annotation) or (annotation,))} - {"NoneType"}
    return {"int": "INTEGER", "float": "NUMBER", "Path": "PATH"}.get(kinds.pop(), "TEXT")


def _flag_type(annotation: Any) -> Any:
    """Return what typer parses; None means that the flag was not given. Choices are checked by the settings."""
    return bool | None if annotation is bool else str | None


# typer reads a command's signature and its annotations: these are made of the settings.
_serve.__signature__ = inspect.Signature(_flags())  # type: ignore[attr-defined]  # functions take attributes
_serve.__annotations__ = {parameter.name: parameter.annotation for parameter in _flags()}
app.command("serve")(_serve)
