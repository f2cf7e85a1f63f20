"""`stillhouse store verify | inspect | merge | derive | export | load`: what can be done with a teacher's answers.

`stillhouse capture` makes a store, `stillhouse student train --store` trains from it. Nothing heavy is imported until
a verb runs.
"""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Look at an offline store of a teacher's answers, and work on it."
)

TOKEN_VARIABLE = "STILLHOUSE_TEACHER_TOKEN"  # noqa: S105 - the name of a variable

Address = Annotated[
    str, typer.Argument(metavar="STORE", help="A store's folder, or its address, such as s3://bucket/store.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to be made: new, or empty.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def verify(
    store: Address,
    *,
    teacher: Annotated[
        str | None,
        typer.Option(help="Also ask this teacher (HOST:PORT, or http://) again, and compare the bytes of its answers."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="About how many samples it is asked, drawn at random.")] = 32,
    seed: Annotated[int, typer.Option(help="Decides which.")] = 0,
    ca: Annotated[
        str | None,
        typer.Option(help="TLS: PEM file of the authority that signed the teacher's certificate, or system."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Mutual TLS: PEM file of this client's certificate.")] = None,
    key: Annotated[Path | None, typer.Option(help="Mutual TLS: PEM file of its private key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a store over: checksums, counts, order. Every fault is named; exit 2 where there is one."""
    from stillhouse.store.verify import verify as run

    provider = _teacher(teacher, ca, certificate, key)
    try:
        with _progress("shards") as progress:
            found = run(store, teacher=provider, num_samples=samples, seed=seed, progress=progress)
    finally:
        if provider is not None:
            provider.close()
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        again = f"; {found.reasked} answer(s) asked for again" if teacher else ""
        typer.echo(f"sound: {found.shards:,} shard(s), {found.samples:,} samples, {found.tokens:,} tokens{again}")
    if found.faults:
        for fault in found.faults:
            typer.echo(f"fault: {fault}", err=True)
        raise StoreError(f"{store} has {len(found.faults)} fault(s): copy what they name again, or capture it anew")


@app.command("inspect")
def inspect_(
    store: Address,
    *,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Shows the text: a folder, a hub name, a .gguf file; by default the store's own tokens do."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a tokenizer from the hub.")] = None,
    sample: Annotated[
        list[int] | None,
        typer.Option(help="Show this sample, counted from 0; once more for more; by default the first 2."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a store holds: how much text, which teacher, how sure it was, and some samples with its choices."""
    from stillhouse.cli.store_view import inspect_json, print_store
    from stillhouse.store import open_store

    opened = open_store(store, allow_partial=True)
    if as_json:
        typer.echo(json.dumps(inspect_json(opened), indent=2))
        return
    decode = None
    if tokenizer is not None:
        from stillhouse.cli.named_tokenizer import open_tokenizer

        decode = open_tokenizer(tokenizer, revision).decode
    print_store(opened, sample, decode, _console())


@app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="The folders of all shares, in any order.")],
    *,
    out: Annotated[Path, typer.Option(help="The store to be made: new, or empty.")],
) -> None:
    """Join the shares of a capture that was split: the result is, byte for byte, that of one that was not."""
    from stillhouse.store.merge import merge as run

    with _progress("shards") as progress:
        manifest = run(stores, out, progress=progress)
    typer.echo(f"{out}: {sum(part.num_samples for part in _parts(manifest)):,} samples")


@app.command()
def derive(
    store: Address,
    out: Out,
    *,
    encoding: Annotated[str, typer.Option(help="The form of the answers: sampled[:DRAWS[:SEED]] or top_k:K[:DTYPE].")],
    temperature: Annotated[float, typer.Option(help="T of the answers.")] = 1.0,
    samples_per_shard: Annotated[int | None, typer.Option(min=1, help="By default as a capture has it.")] = None,
) -> None:
    """Make a store of sampled or top-k answers at any temperature from a dense or hidden one, without the teacher."""
    from stillhouse.encoding_text import parse_encoding
    from stillhouse.store.derive import derive as run

    form = parse_encoding(encoding)
    with _progress("samples") as progress:
        manifest = run(
            store, out, form, temperature=temperature, samples_per_shard=samples_per_shard, progress=progress
        )
    typer.echo(f"{out}: {manifest.plan.encoding} answers at T = {manifest.plan.temperature:g}")


@app.command()
def export(store: Address, out: Out) -> None:
    """Write a store as a folder that `datasets.load_from_disk` opens."""
    from stillhouse.store.export import export as run

    with _progress("shards") as progress:
        run(store, out, progress=progress)
    typer.echo(f"{out}: open it with datasets.load_from_disk")


@app.command()
def load(
    store: Address,
    *,
    redis_url: Annotated[
        str,
        typer.Option(
            envvar="TEACHER_REDIS_URL", help="The Redis of the teacher service: redis://, rediss:// or unix://."
        ),
    ],
    ttl_seconds: Annotated[int, typer.Option(min=0, help="How long Redis keeps them; 0: as long as it has room.")] = 0,
) -> None:
    """Fill the Redis of a teacher service, so that a live service answers from the store."""
    from stillhouse.store.load import load as run

    with _progress("answers") as progress:
        loaded = run(store, redis_url, ttl_seconds=ttl_seconds, progress=progress)
    more = f"; {loaded.too_large} are longer than Redis can hold" if loaded.too_large else ""
    typer.echo(f"{loaded.answers:,} answers, {loaded.bytes / 1e6:,.1f} MB{more}")


def _teacher(address: str | None, ca: str | None, certificate: Path | None, key: Path | None) -> Any:
    if address is None:
        return None
    import os

    from stillhouse.client import TeacherClient
    from stillhouse.credentials import credentials_for

    token = os.environ.get(TOKEN_VARIABLE)
    return TeacherClient(address, token=token, credentials=credentials_for(address, ca, certificate, key))


def _parts(manifest: Any) -> list[Any]:
    return [manifest.plan.part(name) for name in manifest.plan.parts]


def _progress(what: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    from stillhouse.cli.store_view import progress_of

    return progress_of(what, _console(stderr=True))


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    # Colours only for a person: what goes into a file or a pipe is plain, and its tables are as wide as they need.
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 160
    return Console(soft_wrap=True, highlight=False, stderr=stderr, width=width)
