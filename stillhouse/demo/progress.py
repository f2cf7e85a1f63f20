"""Shows a running pass: on a terminal as a live bar, elsewhere as a line now and then."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stillhouse.demo.measures import TeacherCounters

STEPS_PER_PLAIN_LINE = 10
SPEEDS_REMEMBERED = 9
"""The median of so many steps is shown: a step with an evaluation in it says little of the speed."""


@dataclass(slots=True)
class PassProgress:
    """The progress of one training pass of `total_steps` steps."""

    console: Console
    title: str
    total_steps: int
    _speeds: deque[float] = field(default_factory=lambda: deque(maxlen=SPEEDS_REMEMBERED))
    _bar: Progress = field(init=False)
    _task: Any = field(init=False)

    def __post_init__(self) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(self.title, total=self.total_steps, figures="starting")

    def update(self, record: dict[str, Any], counters: TeacherCounters) -> None:
        """Show one step's record and what the teacher has counted in this pass."""
        self._speeds.append(record["tokens_per_second"])
        figures = (
            f"loss {record['loss']:.3f}  KL {record['kl']:.3f}  {median(self._speeds):.0f} tokens/s  "
            f"cache {counters.cache_hits:.0f} of {counters.cache_hits + counters.cache_misses:.0f}"
        )
        self._bar.update(self._task, completed=record["step"], figures=figures)
        plain = not self.console.is_terminal
        if plain and (record["step"] % STEPS_PER_PLAIN_LINE == 0 or record["step"] in (1, self.total_steps)):
            self.console.print(f"{self.title}: step {record['step']}/{self.total_steps}  {figures}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
