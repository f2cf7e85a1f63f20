"""What `stillhouse data` shows: a bar while a corpus is prepared, what came out, and samples as a person can read them.

Learnt tokens are green on a terminal; where there are no colours they stand between [+ and +].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from stillhouse.data import NO_LABEL, PackedDataset, Prepared, Progress, Sample
from stillhouse.errors import ConfigurationError

DEFAULT_SAMPLES: Final = 3
SECONDS_PER_UPDATE: Final = 0.1

LEARNT, CONTEXT = "green", "dim"


@contextmanager
def preparing(console: Console) -> Iterator[Callable[[Progress], None] | None]:
    """Show a bar while documents are tokenised, if anybody watches; nothing where all was there already."""
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("preparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sources, {task.fields[tokens]} tokens"),
    )
    with Bar(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False, tokens="0")
        shown = 0.0

        def update(progress: Progress) -> None:
            nonlocal shown
            if time.monotonic() - shown < SECONDS_PER_UPDATE:
                return
            shown = time.monotonic()
            bar.update(
                task,
                completed=progress.sources_done,
                total=progress.sources,
                tokens=f"{progress.tokens:,}",
                visible=True,
            )

        yield update


def print_summary(prepared: Prepared, console: Console) -> None:
    """Print where a prepared corpus lies and what each of its parts holds."""
    manifest = prepared.manifest
    table = Table(box=None, pad_edge=False)
    for name in ("part", "samples", "documents", "tokens", "learnt", "fingerprint"):
        table.add_column(name, justify="left" if name in ("part", "fingerprint") else "right", no_wrap=True)
    for dataset in (prepared.train, prepared.held_out):
        if dataset is not None:
            part = dataset.part
            counts = (part.num_samples, part.num_documents, part.num_tokens)
            learnt = f"{part.num_learnt / part.num_tokens:.1%}"
            table.add_row(dataset.name.replace("_", "-"), *(f"{count:,}" for count in counts), learnt, part.fingerprint)
    console.print(table)
    lengths = ", ".join(
        f"{dataset.name.replace('_', '-')} {_lengths(dataset)}"
        for dataset in (prepared.train, prepared.held_out)
        if dataset is not None
    )
    console.print(f"blocks of {manifest.block_size} tokens; documents' lengths: {lengths}")
    if manifest.skipped_documents:
        console.print(f"{manifest.skipped_documents:,} document(s) left out: nothing in them is learnt")
    if prepared.held_out is not None and prepared.held_out.part.skipped_samples:
        left_out = prepared.held_out.part.skipped_samples
        console.print(f"{left_out:,} held-out sample(s) left out: nothing to learn, or also in the training part")
    console.print(f"{'found' if prepared.from_cache else 'written'} in {prepared.folder}", markup=False)


def _lengths(dataset: PackedDataset) -> str:
    lengths = dataset.document_lengths()
    return f"{lengths.min():,} to {lengths.max():,}, median {int(np.median(lengths)):,}"


def choose_samples(
    prepared: Prepared, part: Literal["train", "held_out"], indices: list[int] | None
) -> tuple[PackedDataset, list[int]]:
    """Return a part and the samples of it that are named, or its first few where none is.

    Raises:
        ConfigurationError: there is no such part, or no such sample.
    """
    dataset = prepared.train if part == "train" else prepared.held_out
    if dataset is None:
        raise ConfigurationError("part held_out: nothing is held out; give held_out_fraction or held_out_samples")
    for index in indices or ():
        if not 0 <= index < len(dataset):
            raise ConfigurationError(f"sample {index}: the {part} part has samples 0 to {len(dataset) - 1}")
    return dataset, indices or list(range(min(DEFAULT_SAMPLES, len(dataset))))


def print_samples(dataset: PackedDataset, indices: list[int], tokenizer: Any, console: Console) -> None:
    """Print samples as text."""
    for index in indices:
        console.print()
        _print_sample(index, dataset[index], tokenizer, console)


def _print_sample(index: int, sample: Sample, tokenizer: Any, console: Console) -> None:
    lengths = ", ".join(str(length) for length in sample.segment_lengths)
    console.print(
        f"sample {index}: {len(sample.token_ids)} tokens, {int(sample.mask.sum())} learnt; documents of {lengths}"
    )
    # A position learns to say the token after it: what is shown as learnt is that token, at its own place.
    said = np.zeros(len(sample.token_ids), dtype=np.bool_)
    said[1:] = sample.mask[:-1]
    line = Text()
    edges = [0, *accumulate(sample.segment_lengths)]
    for number, (start, end) in enumerate(pairwise(edges)):
        if number:
            line.append("\n--- next document ---\n", style="bold")
        for run_start, run_end in _runs(said[start:end]):
            text = printable(tokenizer.decode(sample.token_ids[start + run_start : start + run_end].tolist()))
            _append(line, text, learnt=bool(said[start + run_start]), colour=console.is_terminal)
    if sample.mask[-1] and sample.labels[-1] != NO_LABEL:
        line.append("\n--- the document goes on with ---\n", style="bold")
        _append(line, printable(tokenizer.decode([int(sample.labels[-1])])), learnt=True, colour=console.is_terminal)
    console.print(line)


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the stretches of equal flags. Decoded together, so that a character of several tokens stays whole."""
    edges = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(flags)]
    yield from pairwise(edges)


def _append(line: Text, text: str, *, learnt: bool, colour: bool) -> None:
    if colour:
        line.append(text, style=LEARNT if learnt else CONTEXT)
    else:
        line.append(f"[+{text}+]" if learnt else text)


def printable(text: str) -> str:
    """Show control characters as pictures: a corpus must not steer the terminal it is shown on."""
    return "".join(
        character if character in "\n\t" or character.isprintable() else _picture(character) for character in text
    )


def _picture(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"\\u{code:04x}"
