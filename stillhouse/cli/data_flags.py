"""The flags that describe a corpus, made from `DataSpec`: name, type and help stand once, and are training's own."""

from __future__ import annotations

import inspect
import types
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from stillhouse.data.spec import DataSpec


def data_flags() -> list[inspect.Parameter]:
    """Return one flag per field of `DataSpec`, for the signature of a verb; none of them has a default."""
    return [_flag(field) for field in DataSpec.model_fields]


def take_data(values: dict[str, Any]) -> dict[str, Any]:
    """Take the corpus' flags out of what a verb was called with; return those that were given, by field."""
    # An empty list is how typer says that a repeated flag was not given.
    taken = {field: values.pop(_flag_name(field)) for field in DataSpec.model_fields}
    return {field: value for field, value in taken.items() if value is not None and value != []}


def _flag_name(field: str) -> str:
    return "data" if field == "sources" else field


def _flag(field: str) -> inspect.Parameter:
    info = DataSpec.model_fields[field]
    name = _flag_name(field)
    dashed = name.replace("_", "-")
    kind: Any = info.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    kind = next(one for one in kinds if one is not types.NoneType)
    if get_origin(kind) is tuple:
        kind = list[str]
    description = " ".join((info.description or "").split())
    if not info.is_required() and info.default not in (None, (), True, False):
        description += f" (default: {info.default})"
    option = typer.Option(
        f"--{dashed}/--no-{dashed}" if kind is bool else f"--{dashed}", help=description, show_default=False
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )
