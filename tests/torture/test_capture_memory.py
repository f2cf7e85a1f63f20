"""A capture's memory does not grow with its corpus."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.capture_run import CaptureRun, fixture_teacher, write_corpus

VOCABULARY = 1000
FEW, MANY = 12_000, 120_000
POLL_SECONDS = 0.02


def peak_bytes(run: CaptureRun) -> int:
    """Run a capture, and return the most memory that it held of its own."""
    run.start()
    process, most = psutil.Process(run.process.pid), 0
    while run.process.poll() is None:
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            break
        most = max(most, memory.rss - memory.shared)
        time.sleep(POLL_SECONDS)
    assert run.end() == 0, run.said()
    return most


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_times_the_answers_take_no_more_memory(tmp_path: Path) -> None:
    with fixture_teacher(tmp_path / "service", vocabulary=VOCABULARY) as service:
        flags = ("--teacher", service.grpc, "--encoding", "dense:f32", "--max-held-bytes", str(32 * 2**20))
        few, many = (
            peak_bytes(
                CaptureRun(tmp_path / f"store-{tokens}", *flags, *write_corpus(tmp_path / str(tokens), tokens=tokens))
            )
            for tokens in (FEW, MANY)
        )
    answers = (MANY - FEW) * VOCABULARY * 4
    assert answers > 400 * 2**20
    assert many - few < 100 * 2**20
