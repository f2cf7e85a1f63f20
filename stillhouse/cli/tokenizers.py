"""`stillhouse tokenizers compare A B`: can models with these two be paired, and on how many ids?

Nothing heavy is imported until the verb runs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stillhouse.vocabulary import VocabularyComparison

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look at tokenizers.")

EXIT_CANNOT_BE_PAIRED = 2
BEYOND_SHOWN = 5
"""Tokens past the end of the shorter tokenizer that are shown: enough to see what kind they are."""

_NAMES = "a folder, a hub name, a .gguf file, or smollm2"


@app.callback()
def _verbs() -> None:
    """Look at tokenizers."""


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help=f"The teacher's tokenizer: {_NAMES}.")],
    b: Annotated[str, typer.Argument(help="The student's: the same.")],
    revision_a: Annotated[str | None, typer.Option(help="Branch, tag or commit of A, a hub name.")] = None,
    revision_b: Annotated[str | None, typer.Option(help="Branch, tag or commit of B, a hub name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Say whether two tokenizers can be paired, on how many ids, and the first that differs.

    Exit code 0 when they can be, 2 when not.
    """
    from stillhouse.cli.named_tokenizer import head_size, open_tokenizer
    from stillhouse.fingerprint import tokens_fingerprint
    from stillhouse.vocabulary import compare_vocabularies, tokenizer_tokens

    named = {"a": (a, revision_a), "b": (b, revision_b)}
    tokens = {side: tokenizer_tokens(open_tokenizer(*which)) for side, which in named.items()}
    heads = {side: head_size(*which) for side, which in named.items()}
    found = compare_vocabularies(tokens["a"], tokens["b"], heads["a"], heads["b"])
    sides = {
        side: {
            "name": which[0],
            "tokens": len(tokens[side]),
            "head_size": heads[side],
            "fingerprint": tokens_fingerprint(tokens[side]),
        }
        for side, which in named.items()
    }
    longer = max(tokens.values(), key=len)
    beyond = list(longer[min(len(one) for one in tokens.values()) :])
    if as_json:
        typer.echo(json.dumps(_as_json(sides, found, beyond), indent=2, ensure_ascii=False))
    else:
        _print(sides, found, beyond)
    if not found.can_be_paired:
        raise typer.Exit(EXIT_CANNOT_BE_PAIRED)


def _as_json(sides: dict[str, dict[str, Any]], found: VocabularyComparison, beyond: list[str]) -> dict[str, Any]:
    first = found.first_difference
    return {
        "can_be_paired": found.can_be_paired,
        "shared_ids": found.num_shared,
        **sides,
        "first_difference": None if first is None else {"id": first.token_id, "a": first.a, "b": first.b},
        "different_ids": found.num_different,
        "compared_ids": found.num_compared,
        "beyond_the_shorter": {"ids": len(beyond), "first_tokens": beyond[:BEYOND_SHOWN]},
    }


def _print(sides: dict[str, dict[str, Any]], found: VocabularyComparison, beyond: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    # Plain and never cut to a width where it goes into a file or a pipe; tokens hold brackets, which are no markup.
    console = Console(soft_wrap=True, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for name in ("", "tokenizer", "tokens", "head", "fingerprint"):
        table.add_column(name, justify="right" if name in ("tokens", "head") else "left", no_wrap=True)
    for side, facts in sides.items():
        head = "unknown" if facts["head_size"] is None else f"{facts['head_size']:,}"
        table.add_row(side.upper(), facts["name"], f"{facts['tokens']:,}", head, facts["fingerprint"])
    console.print(table)
    if found.first_difference is None:
        console.print(f"They can be paired, on the first {found.num_shared:,} ids.")
    else:
        first = found.first_difference
        console.print(
            f"They cannot be paired: {found.num_different:,} of the {found.num_compared:,} ids that both have differ."
        )
        console.print(f"The first that differs is id {first.token_id}: {first.a!r} in A, {first.b!r} in B.")
    if beyond:
        longer, shorter = sorted(sides, key=lambda side: -sides[side]["tokens"])
        shown = ", ".join(repr(token) for token in beyond[:BEYOND_SHOWN]) + (", ..." if beyond[BEYOND_SHOWN:] else "")
        console.print(
            f"{longer.upper()} has {len(beyond):,} ids beyond the last of {shorter.upper()}: {shown}. "
            f"Data that holds them cannot be used for this pair."
        )
