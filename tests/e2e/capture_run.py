"""A capture in a process of its own, which can be stopped anywhere, and a teacher without a model for it to ask."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.torture.mix import COUNT
from tests.torture.service_process import OwnProcess, ServiceProcess, serving, wait_until

VOCABULARY = 300
BLOCK_SIZE = 32
POLL_SECONDS = 0.002
END_SECONDS = 1500.0 * max(1.0, COUNT)
"""More than the slowest machine takes for the largest of these captures."""

# Every sample by itself, so that there are many moments between two of them.
ONE_BY_ONE = ("--max-request-tokens", "1", "--max-concurrent-requests", "1")


@contextmanager
def fixture_teacher(folder: Path, *flags: str, vocabulary: int = VOCABULARY) -> Iterator[ServiceProcess]:
    """Serve answers that need no model."""
    backend = ("--backend", "fixture", "--fixture-vocabulary-size", str(vocabulary))
    with serving(folder, Path("none"), *backend, *flags) as service:
        yield service


def write_corpus(folder: Path, *, tokens: int = 12_000) -> list[str]:
    """Write shards of token ids; return the flags that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(3).integers(1, 200, tokens, dtype=np.uint32)
    (folder / "corpus.bin").write_bytes(ids.tobytes())
    flags = ["--data", str(folder / "corpus.bin"), "--block-size", str(BLOCK_SIZE), "--held-out-samples", "20"]
    return [*flags, "--samples-per-shard", "64", "--cache-dir", str(folder / "cache")]


class CaptureRun:
    """The same command, started as often as it takes."""

    def __init__(self, folder: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.output = folder
        self.log = folder.with_suffix(".log")
        self._argv = [sys.executable, "-m", "stillhouse", "capture", "--output-dir", str(folder), *flags]
        self._environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}
        self._process: OwnProcess | None = None

    def start(self) -> None:
        """Start it."""
        self._process = OwnProcess(self._argv, self.log, self._environment)

    @property
    def process(self) -> OwnProcess:
        """The process that was started last."""
        assert self._process is not None
        return self._process

    def end(self) -> int:
        """Wait for its end; return the exit code."""
        try:
            return self.process.ended(END_SECONDS)
        finally:
            self.stop()

    def run(self) -> int:
        """Start it, and wait for its end."""
        self.start()
        return self.end()

    def written(self) -> int:
        """Return the bytes of answers on the disk now."""
        total = 0
        for place in ("train", "held_out", "partial"):
            for path in (self.output / place).glob("*"):
                try:
                    total += path.stat().st_size
                except FileNotFoundError:  # a journal that became a shard
                    continue
        return total

    def until_written(self, num_bytes: int) -> bool:
        """Wait until so much more is there; return whether it is, and not the end."""
        goal = self.written() + num_bytes
        deadline = time.monotonic() + END_SECONDS
        while self.process.poll() is None:
            if self.written() >= goal:
                return True
            assert time.monotonic() < deadline, self.process.tail()
            time.sleep(POLL_SECONDS)
        return False

    def stop_after(self, num_bytes: int, number: signal.Signals) -> int | None:
        """Start it, and stop it once it has written so much; return its exit code, None if it was done before."""
        self.start()
        if not self.until_written(num_bytes):
            assert self.end() == 0, self.process.tail()
            return None
        self.process.signal(number)
        return self.end()

    def until_it_says(self, words: str) -> None:
        """Wait for words in its log."""
        wait_until(lambda: words in self.said(), END_SECONDS, f"{words!r} in the log")

    def said(self) -> str:
        """Return all that it has said."""
        return self.log.read_text(encoding="utf-8")

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.stop()


def kill_at_random(run: CaptureRun, kills: int, whole_bytes: int, seed: int) -> int:
    """Kill a capture so many times on its way, at random moments; return how often it was killed."""
    rng = random.Random(seed)
    done = 0
    for _ in range(kills):
        # The journal's frames take more than what becomes of them, so that this comes to less than the whole.
        code = run.stop_after(rng.randrange(1, max(2, whole_bytes // kills)), signal.SIGKILL)
        if code is None:
            break
        assert code == -signal.SIGKILL
        done += 1
    return done


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
