"""`stillhouse data prepare | inspect`: build a corpus' samples, and look at them before anything is trained on them.

The flags that describe a corpus are made from `DataSpec`, so that name, type and help stand once and are those that
training takes. Nothing heavy is imported until a verb runs.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stillhouse.cli.data_flags import data_flags, take_data
from stillhouse.data.spec import DataSpec, data_spec

if TYPE_CHECKING:
    from rich.console import Console

    from stillhouse.data import Prepared

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Prepare a corpus, and look at the samples that it gives."
)

SourceNames = Annotated[list[str] | None, typer.Argument(metavar="SOURCE...", help="The same as --data.")]
Tokenizer = Annotated[str, typer.Option(help="The tokenizer: a folder, a hub name, a .gguf file, or smollm2.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a tokenizer from the hub.")]
CacheDir = Annotated[
    Path | None, typer.Option(help="Where prepared corpora are kept; by default in the user's cache folder.")
]


def _with_data_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command that takes `spec` first take one flag per field of `DataSpec` instead."""

    def run(sources: list[str] | None = None, **values: Any) -> None:
        given = take_data(values)
        named = (*(sources or ()), *given.get("sources", ()))
        command(data_spec({**given, "sources": named or None}), **values)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    positional = inspect.Parameter(
        "sources", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=SourceNames
    )
    parameters = [
        positional,
        *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
        *data_flags(),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions take attributes
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = command.__name__.rstrip("_"), command.__doc__
    return run


@app.command("prepare")
@_with_data_flags
def prepare_(
    spec: DataSpec,
    *,
    tokenizer: Tokenizer,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Tokenise and pack a corpus, and keep the result, so that training starts at once."""
    from stillhouse.cli.data_view import print_summary

    prepared, _ = _prepare(spec, tokenizer, revision, cache_dir)
    if as_json:
        summary = {"folder": str(prepared.folder), "from_cache": prepared.from_cache}
        typer.echo(json.dumps({**summary, **prepared.manifest.model_dump(mode="json")}, indent=2))
    else:
        print_summary(prepared, _console())


@app.command("inspect")
@_with_data_flags
def inspect_(
    spec: DataSpec,
    *,
    tokenizer: Tokenizer,
    revision: Revision = None,
    cache_dir: CacheDir = None,
    part: Annotated[Literal["train", "held_out"], typer.Option(help="Which part's samples to show.")] = "train",
    sample: Annotated[
        list[int] | None,
        typer.Option(help="Show this sample, counted from 0; once more for more; by default the first 3."),
    ] = None,
) -> None:
    """Show samples as text: which tokens are learnt, and where one document ends and the next begins."""
    from stillhouse.cli.data_view import choose_samples, print_samples, print_summary

    prepared, loaded = _prepare(spec, tokenizer, revision, cache_dir)
    dataset, indices = choose_samples(prepared, part, sample)
    console = _console()
    print_summary(prepared, console)
    print_samples(dataset, indices, loaded, console)


def _prepare(spec: DataSpec, tokenizer: str, revision: str | None, cache_dir: Path | None) -> tuple[Prepared, Any]:
    from stillhouse.cli.data_view import preparing
    from stillhouse.cli.named_tokenizer import open_tokenizer
    from stillhouse.data import prepare

    loaded = open_tokenizer(tokenizer, revision)
    with preparing(_console(stderr=True)) as progress:
        return prepare(spec, loaded, cache_dir, progress), loaded


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    # Colours only for a person: what goes into a file or a pipe is plain and never cut to a width.
    return Console(soft_wrap=True, highlight=False, stderr=stderr)
