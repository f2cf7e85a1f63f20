"""How far a capture is, as a person at a terminal sees it and as a log holds it."""

from __future__ import annotations

import io

import pytest
import structlog
from rich.console import Console

from stillhouse.capture import progress
from stillhouse.capture.progress import CaptureProgress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def sizes() -> tuple[int, float]:
    return 3 * 2**20, 33.94


def test_a_log_gets_a_line_now_and_then_with_every_figure(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with structlog.testing.capture_logs() as lines, CaptureProgress(console, 100_000, 40_000, sizes) as shown:
        for _ in range(40):
            clock.now += 1.0
            shown.add(500)
    assert len(lines) == 4
    assert lines[-1] == {
        "event": "capturing",
        "log_level": "info",
        "tokens": 60_000,
        "of": 100_000,
        "percent": 60.0,
        "tokens_per_second": 500,
        "bytes_per_token": 33.9,
        "bytes": 3 * 2**20,
        "seconds_to_go": 80,
    }


def test_the_speed_is_that_of_the_last_minute(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with structlog.testing.capture_logs() as lines, CaptureProgress(console, 10**9, 0, sizes) as shown:
        for tokens in (*[100] * 100, *[1000] * 100):
            clock.now += 1.0
            shown.add(tokens)
    assert lines[0]["tokens_per_second"] == 100
    assert lines[-1]["tokens_per_second"] == pytest.approx(1000, rel=0.1)


def test_a_person_sees_a_bar_with_the_same_figures(clock: Clock) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=200)
    with CaptureProgress(console, 100_000, 0, sizes) as shown:
        clock.now += 10.0
        shown.add(25_000)
    said = text.getvalue()
    for figure in ("25,000 of 100,000 tokens", "2,500 tokens/s", "33.9 bytes a token", "3.0 MiB", "30 s to go", "25%"):
        assert figure in said
