"""What `stillhouse store` shows: a bar while something runs, and a page about a store that a person can read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from stillhouse.cli.data_view import printable
from stillhouse.errors import ConfigurationError
from stillhouse.store import Store, StoredSample
from stillhouse.store.summary import Summary, choices, summarise
from stillhouse.token_texts import TokenTexts

DEFAULT_SAMPLES: Final = 2
SHOWN_TOKENS: Final = 48
SHOWN_POSITIONS: Final = 8

Decode = Callable[[list[int]], str]


@contextmanager
def progress_of(what: str, console: Console) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar of what is done, if anybody watches."""
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def inspect_json(store: Store) -> dict[str, Any]:
    """Return what `print_store` shows of the whole, for a program."""
    summary = summarise(store)
    return {
        "plan": store.manifest.plan.model_dump(mode="json"),
        "share": list(store.manifest.share),
        "counts": {name: _counts(store, name) for name in store.manifest.plan.parts},
        "summary": {name: getattr(summary, name) for name in ("positions", "entropy", "kept_mass", "ids")},
    }


def print_store(store: Store, samples: list[int] | None, decode: Decode | None, console: Console) -> None:
    """Print what a store holds, and some samples of its training part.

    Raises:
        ConfigurationError: there is no such sample.
        StoreError: a shard that is read is missing or altered.
    """
    for index in samples or ():
        if not store.train.has(index):
            raise ConfigurationError(f"sample {index}: {store.address} does not hold it in its training part")
    _print_facts(store, console)
    _print_parts(store, console)
    _print_summary(store, summarise(store), console)
    held = (index for index in range(len(store.train)) if store.train.has(index))
    chosen = samples or [index for index, _ in zip(held, range(DEFAULT_SAMPLES), strict=False)]
    texts = TokenTexts(store.tokens)
    for index in chosen:
        console.print()
        _print_sample(store, index, decode or texts.text, console)


def _print_facts(store: Store, console: Console) -> None:
    plan = store.manifest.plan
    teacher = plan.teacher
    share = "" if store.manifest.is_whole else ", share {}/{}".format(*store.manifest.share)
    facts = {
        "store": f"{store.address}, format {plan.format_version}, {plan.writer}{share}",
        "teacher": f"{teacher.model}, {teacher.compute_dtype}, {teacher.mode}; fingerprint {teacher.fingerprint}",
        "answers": f"{plan.encoding} at T = {plan.temperature:g} over {plan.vocabulary_size:,} ids"
        + (f", derived from {plan.derived_from}" if plan.derived_from else ""),
        "text": f"blocks of {plan.block_size:,} tokens; fingerprint {plan.train.fingerprint}; tokenizer "
        f"{plan.tokenizer_fingerprint or 'unknown'}",
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, fact in facts.items():
        table.add_row(name, Text(fact))
    console.print(table)


def _counts(store: Store, name: Any) -> dict[str, int]:
    shards = store.manifest.shards[name]
    return {
        "shards": len(shards),
        "samples": sum(shard.samples for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "positions": sum(shard.positions for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
    }


def _print_parts(store: Store, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("part", "shards", "samples", "tokens", "answered", "bytes", "a token"):
        table.add_column(column, justify="left" if column == "part" else "right", no_wrap=True)
    for name in store.manifest.plan.parts:
        counts = _counts(store, name)
        per_token = f"{counts['bytes'] / counts['tokens']:.1f}" if counts["tokens"] else ""
        cells = (f"{count:,}" for count in counts.values())
        table.add_row(name.replace("_", "-"), *cells, per_token)
    console.print()
    console.print(table)
    head = store.manifest.output_head
    if head is not None:
        console.print(f"output head: {head.bytes:,} bytes")


def _print_summary(store: Store, summary: Summary, console: Console) -> None:
    temperature = store.manifest.plan.temperature
    said = [f"of {summary.positions:,} positions looked at, at T = {temperature:g}:"]
    if summary.entropy is not None:
        said.append(f"mean entropy {summary.entropy:.2f} nats;")
    if summary.kept_mass is not None:
        said.append(f"kept mass {summary.kept_mass:.1%};")
    if summary.ids is not None:
        said.append(f"{summary.ids:.1f} ids a position;")
    console.print(" ".join(said).rstrip(";"))


def _print_sample(store: Store, index: int, decode: Decode, console: Console) -> None:
    row = store.train[index]
    ids = row.token_ids.tolist()
    lengths = ", ".join(map(str, row.segment_lengths[:8])) + (" ..." if len(row.segment_lengths) > 8 else "")
    console.print(f"sample {index}: {len(ids)} tokens, {int(row.mask.sum())} answered; documents of {lengths}")
    more = " ..." if len(ids) > SHOWN_TOKENS else ""
    console.print(Text(printable(_read(decode, ids[:SHOWN_TOKENS])) + more, style="dim" if console.is_terminal else ""))
    table = Table(box=None, pad_edge=False)
    for column in ("position", "after", "next", "the teacher's first choices"):
        table.add_column(column, justify="right" if column == "position" else "left", no_wrap=True)
    for answer, position in _shown(row):
        label = int(row.labels[position])
        named = ", ".join(f"{_quoted(decode, one)} {share:.0%}" for one, share in choices(row.payload, answer, store))
        after = _quoted(decode, ids[position])
        table.add_row(str(position), Text(after), Text("" if label < 0 else _quoted(decode, label)), Text(named))
    console.print(table)


def _shown(row: StoredSample) -> list[tuple[int, int]]:
    """Return some rows of the answer, spread evenly, each with its position in the sample."""
    positions = np.flatnonzero(row.mask).tolist()
    step = max(1, len(positions) // SHOWN_POSITIONS)
    return list(enumerate(positions))[::step][:SHOWN_POSITIONS]


def _quoted(decode: Decode, token_id: int) -> str:
    return f"{printable(_read(decode, [token_id]))!r}"


def _read(decode: Decode, ids: list[int]) -> str:
    # Without a tokenizer the ids themselves are all there is to show.
    return decode(ids) or " ".join(map(str, ids))
