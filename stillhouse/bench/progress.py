"""A line that moves while a load runs, where somebody watches. Knows nothing of what is measured but two counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stillhouse.bench.drive import Load
from stillhouse.bench.measure import Recorder

_SECONDS_PER_UPDATE = 0.2


@contextmanager
def watching(console: Console, load: Load) -> Iterator[Callable[[Recorder], None]]:
    """Yield what is to be called at each answer."""
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.fields[counts]}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=load.requests or load.seconds, counts="warming up")
        started = shown = 0.0

        def update(recorder: Recorder) -> None:
            nonlocal started, shown
            now = time.monotonic()
            started = started or now
            if now - shown < _SECONDS_PER_UPDATE:
                return
            shown = now
            answered, failed = recorder.all.requests, sum(recorder.errors.values())
            done = answered + failed if load.requests else now - started
            bar.update(task, completed=done, counts=f"{answered:,} answered, {failed:,} failed")

        yield update
