"""How far a capture is: a live bar to a person at a terminal, an event in the log now and then elsewhere.

Knows nothing of teachers or stores.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from stillhouse.disk import shown

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.5
SPEED_SECONDS = 60.0
"""The speed is that of the last so many seconds."""

_log = structlog.get_logger(__name__)


def shown_seconds(seconds: float) -> str:
    """Return a time for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"


@dataclass(slots=True)
class CaptureProgress:
    """The progress of a capture of `total` tokens, `done` of which were there when it started.

    `sizes` returns what is on the disk: bytes in all, and for each token.
    """

    console: Console
    total: int
    done: int
    sizes: Callable[[], tuple[int, float]]
    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    _told: float = 0.0
    _bar: Progress = field(init=False)
    _task: Any = field(init=False)

    def __post_init__(self) -> None:
        self._told = time.monotonic()
        self._seen.append((self._told, self.done))
        columns = (TextColumn("capturing"), BarColumn(bar_width=24), TaskProgressColumn())
        self._bar = Progress(
            *columns, TextColumn("{task.fields[figures]}"), console=self.console, disable=not self.console.is_terminal
        )
        self._task = self._bar.add_task("", total=self.total, completed=self.done, figures="")

    def add(self, tokens: int) -> None:
        """Count tokens whose answers are written."""
        self.done += tokens
        now = time.monotonic()
        pause = SECONDS_BETWEEN_UPDATES if self.console.is_terminal else SECONDS_BETWEEN_LINES
        if now - self._told >= pause:
            self._told = now
            self._tell(now)

    def _tell(self, now: float) -> None:
        speed = self._speed(now)
        left = max(0, self.total - self.done) / speed if speed else 0.0
        num_bytes, per_token = self.sizes()
        if self.console.is_terminal:
            figures = (
                f"{self.done:,} of {self.total:,} tokens  {speed:,.0f} tokens/s  {per_token:.1f} bytes a token  "
                f"{shown(num_bytes)}  {shown_seconds(left)} to go"
            )
            self._bar.update(self._task, completed=self.done, figures=figures)
            return
        _log.info(
            "capturing",
            tokens=self.done,
            of=self.total,
            percent=round(100 * self.done / self.total, 1) if self.total else 100.0,
            tokens_per_second=round(speed),
            bytes_per_token=round(per_token, 1),
            bytes=num_bytes,
            seconds_to_go=round(left),
        )

    def _speed(self, now: float) -> float:
        self._seen.append((now, self.done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= SPEED_SECONDS:
            self._seen.popleft()
        began, before = self._seen[0]
        return (self.done - before) / max(now - began, 1e-6)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self.console.is_terminal:
            self._tell(time.monotonic())
        self._bar.stop()
