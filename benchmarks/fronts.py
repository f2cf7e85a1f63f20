"""What do front processes give cache hits?

Services without a model, each with a Redis of its own, with 0 (one process does all), 1, 2, 4 and 8 front processes, as
far as that leaves half of the cores to the load. Every answer is remembered. Load clients in processes of their own,
the same for all, keep one service after another busy over many connections, which the kernel deals out to its fronts,
and compare every answer: the smallest ones, in requests a second, and dense ones of 16 sequences (3.1 MB), in MB/s.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from benchmarks._fronts_load import SETTINGS, VOCABULARY
from benchmarks._real_service import real_service
from benchmarks._result import Result, Value
from stillhouse.processes import die_with_parent

FRONTS = (0, 1, 2, 4, 8)
MOST_CLIENTS = 8
_PATIENCE_SECONDS = 120.0
_REPOSITORY = Path(__file__).parents[1]


def measure(quick: bool) -> Result:
    """Measure both settings; `fronts_hits_over_one_process` is the best small rate over that of one process.

    The figures are medians of the ratios by round.
    """
    rounds, seconds = (2, 1.0) if quick else (5, 2.0)
    cores = len(os.sched_getaffinity(0))
    counts = [count for count in FRONTS if count <= max(cores // 2, 1)]
    # Beside the fronts and Redis, which work as much.
    num_clients = max(1, min(cores // 2 - 1, MOST_CLIENTS))
    # A look-up that comes too late would be computed instead, which is not what is asked here.
    flags = ("--backend", "fixture", "--fixture-vocabulary-size", str(VOCABULARY), "--cache-timeout-seconds", "10")
    with ExitStack() as running:
        addresses = {
            count: running.enter_context(real_service(*flags, "--front-processes", str(count))).address
            for count in counts
        }
        clients = [running.enter_context(_client()) for _ in range(num_clients)]
        rates: dict[tuple[str, int], list[float]] = {(name, count): [] for name in SETTINGS for count in counts}
        told_by: dict[tuple[str, int], list[dict[str, float]]] = {key: [] for key in rates}
        for number in range(rounds + 1):
            for (name, count), of in rates.items():
                told = _turn(clients, addresses[count], name, seconds)
                if number:  # the first warms up
                    unit = "num_bytes" if name == "dense" else "answers"
                    of.append(sum(one[unit] for one in told) / seconds)
                    told_by[name, count] += told
    rows = [_row(name, count, of, told_by[name, count], num_clients) for (name, count), of in rates.items()]
    return Result("fronts", rounds, rows, _figures(rates, counts))


def _figures(rates: dict[tuple[str, int], list[float]], counts: list[int]) -> dict[str, float]:
    """Return, by setting, the best of the services with fronts over the one without."""

    def best(name: str) -> float:
        alone = rates[name, 0]
        return max(
            statistics.median(ours / theirs for ours, theirs in zip(rates[name, count], alone, strict=True))
            for count in counts[1:]
        )

    return {"fronts_hits_over_one_process": best("small"), "fronts_dense_mb_s_over_one_process": best("dense")}


def _row(name: str, count: int, rates: list[float], told: list[dict[str, float]], num_clients: int) -> dict[str, Value]:
    scale, unit = (1e-6, "MB/s") if name == "dense" else (1.0, "requests/s")
    values = [rate * scale for rate in rates]
    return {
        "setting": f"{name}, {unit}",
        "front_processes": count,
        "clients": num_clients,
        "min": round(min(values), 1),
        "median": round(statistics.median(values), 1),
        "max": round(max(values), 1),
        "p50_ms": round(1e3 * statistics.median(one["p50_seconds"] for one in told), 2),
        "p99_ms": round(1e3 * statistics.median(one["p99_seconds"] for one in told), 2),
        # Near 1 the load, not the service, is what is measured.
        "client_busy": round(statistics.mean(one["busy"] for one in told), 2),
    }


def _turn(clients: list[_Client], address: str, setting: str, seconds: float) -> list[dict[str, float]]:
    for client in clients:
        client.tell({"address": address, "setting": setting, "seconds": seconds})
    return [client.hear() for client in clients]


class _Client:
    """A load client, spoken to in lines."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin: IO[str] = process.stdin
        self._stdout: IO[str] = process.stdout
        self._log = log

    def tell(self, what: dict[str, Value]) -> None:
        self._stdin.write(json.dumps(what) + "\n")
        self._stdin.flush()

    def hear(self) -> dict[str, float]:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            if selector.select(max(deadline - time.monotonic(), 0)):
                line = self._stdout.readline()
                if line:
                    said: dict[str, float] = json.loads(line)
                    return said
        raise RuntimeError(f"a load client says nothing more:\n{self._log.read_text(errors='replace')[-2000:]}")


@contextmanager
def _client() -> Iterator[_Client]:
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "client.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks._fronts_load"], cwd=_REPOSITORY, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no lock, no allocation
            )  # fmt: skip
        try:
            yield _Client(process, log)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
