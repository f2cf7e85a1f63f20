"""Several workers on one host: a lighthouse, one process each, one exit code.

A worker that dies is started again while the others go on, until it has died again and again without coming further;
one that says that its configuration is wrong, or that a guard stopped it, ends all. Nothing outlives the launcher.

Knows nothing of what a worker does: only its argument list, and the exit codes that every command has.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from stillhouse.processes import Child
from student_worker import progress
from student_worker.elastic.lighthouse import Lighthouse

DONE, WRONG_INPUT, GUARD, INTERRUPTED = 0, 2, 3, 143
FAILED = 1

POLL_SECONDS = 0.05
MAX_CRASHES = 4
"""Of one worker, in a row, without having come further in between: after so many it isn't started again."""
GRACE_SECONDS = 60.0
"""From SIGTERM to SIGKILL: long enough to finish a step and write a checkpoint."""

LIGHTHOUSE_VARIABLE = "STUDENT_LIGHTHOUSE"
TOKEN_VARIABLE = "STUDENT_RUN_TOKEN"  # noqa: S105 - the variable's name
INDEX_VARIABLE = "STUDENT_WORKER_INDEX"


class _Worker:
    """One place among the workers: the process that fills it now, and how those before it ended."""

    def __init__(self, index: int, argv: Sequence[str], log_path: Path, environment: Mapping[str, str]) -> None:
        self.name = f"worker-{index}"
        self._argv = argv
        self._log_path = log_path
        self._progress_path = log_path.with_suffix(".step")
        self._progress_path.unlink(missing_ok=True)
        self._environment = {**environment, progress.VARIABLE: str(self._progress_path.absolute())}
        self._log_position = log_path.stat().st_size if log_path.exists() else 0
        self._furthest = -1
        self.crashes = 0
        self.code: int | None = None
        self.start()

    def start(self) -> None:
        self.code = None
        self.child = Child(self.name, self._argv, self._log_path, self._environment)

    def poll(self) -> int | None:
        """Return the exit code of the process that filled this place last, None while it runs."""
        if self.code is None and self.child.poll() is not None:
            # `stop` also ends what the worker may have left in its process group.
            code = self.child.stop(grace_seconds=0)
            # A worker that is told to end before it has set up its handlers ends by the signal itself.
            self.code = INTERRUPTED if code in (-signal.SIGTERM, -signal.SIGINT) else code
            if self.has_crashed:
                reached = progress.read_progress(self._progress_path)
                self.crashes = 1 if reached > self._furthest else self.crashes + 1
                self._furthest = max(reached, self._furthest)
        return self.code

    @property
    def has_crashed(self) -> bool:
        return self.code not in (None, DONE, WRONG_INPUT, GUARD, INTERRUPTED)

    def new_lines(self) -> Iterator[str]:
        """Yield the lines written since the last call; the last one only when it is whole, or the worker has ended."""
        with self._log_path.open("rb") as log:
            log.seek(self._log_position)
            data = log.read()
        whole = data if self.code is not None else data[: data.rfind(b"\n") + 1]
        self._log_position += len(whole)
        yield from whole.decode("utf-8", errors="replace").splitlines()


def run_local(
    workers: int,
    argv: Sequence[str],
    *,
    log_dir: Path,
    lighthouse: str | None = None,
    environment: Mapping[str, str] | None = None,
    grace_seconds: float = GRACE_SECONDS,
    echo: Callable[[str], None] | None = None,
) -> int:
    """Run `workers` processes of `argv` until the run is over, and return the exit code of the whole.

    Each worker finds `STUDENT_WORKER_INDEX` in its environment and, if there are several, `STUDENT_LIGHTHOUSE` and a
    random `STUDENT_RUN_TOKEN`. SIGINT and SIGTERM are passed on once, as SIGTERM; call it from the main thread.

    Args:
        workers: how many.
        argv: the command of one worker.
        log_dir: `worker-0.log` and so on are appended to here.
        lighthouse: the address of one that runs elsewhere; by default one runs in this process.
        environment: further variables for the workers.
        grace_seconds: from SIGTERM to SIGKILL.
        echo: receives every line that a worker writes, after its name; standard error by default.

    Returns:
        0 once a worker has finished the run; 2 or 3 as soon as one says so; 143 when interrupted; 1 when every worker
        has failed too often.
    """
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(_signals())
        shared = dict(environment or {})
        if lighthouse is None and workers > 1:
            lighthouse = stack.enter_context(Lighthouse()).address
        if lighthouse is not None:
            token = os.environ.get(TOKEN_VARIABLE) or secrets.token_hex(16)
            shared |= {LIGHTHOUSE_VARIABLE: lighthouse, TOKEN_VARIABLE: token}
        running: list[_Worker] = []
        stack.callback(_end, running, 0.0)
        for index in range(workers):
            variables = {**shared, INDEX_VARIABLE: str(index)}
            running.append(_Worker(index, argv, log_dir / f"worker-{index}.log", variables))
        say = echo or _to_standard_error
        code = _watch(running, interrupted, say)
        _end(running, grace_seconds, say)
        finished = any(worker.poll() == DONE for worker in running)
        return DONE if code == INTERRUPTED and finished else code
    return INTERRUPTED


def _watch(workers: list[_Worker], interrupted: list[int], say: Callable[[str], None]) -> int:
    """Start again what crashed, until the run is over or a signal came; return the exit code."""
    given_up: list[_Worker] = []
    while not interrupted:
        for worker in workers:
            worker.poll()
            _echo(worker, say)
        codes = [worker.poll() for worker in workers]
        for fatal in (WRONG_INPUT, GUARD):
            if fatal in codes:
                return fatal
        over = DONE in codes
        for worker in workers:
            if not over and worker.has_crashed and worker.crashes < MAX_CRASHES:
                say(f"{worker.name}: ended with {worker.code}, and is started again")
                worker.start()
            elif not over and worker.has_crashed and worker not in given_up:
                given_up.append(worker)
                say(f"{worker.name}: ended with {worker.code}, {MAX_CRASHES} times without coming further; given up")
        # As they were seen above: one that ends now may have to be started again, or have finished the run.
        if all(worker.code is not None for worker in workers):
            return DONE if over else INTERRUPTED if INTERRUPTED in codes else FAILED
        time.sleep(POLL_SECONDS)
    return INTERRUPTED


def _end(workers: list[_Worker], grace_seconds: float, say: Callable[[str], None] | None = None) -> None:
    """SIGTERM to all at once, and SIGKILL to those that are still there after the grace."""
    for worker in workers:
        worker.child.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for worker in workers:
        if worker.poll() is None:
            worker.code = worker.child.stop(grace_seconds=0)
        if say is not None:
            _echo(worker, say)


def _echo(worker: _Worker, say: Callable[[str], None]) -> None:
    for line in worker.new_lines():
        say(f"{worker.name}: {line}")


def _to_standard_error(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list; a second one ends the launcher, and with it the workers, at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
