"""One run of student workers through the real commands, looked after as Kubernetes would.

A worker that ends with a code other than 0, 2, 3 or 143 is started again. What is to happen at a certain moment is
said beforehand (`whenever`) and done while the run is watched, so that no test waits for anything by the clock.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stillhouse.cli.main import EXIT_DONE, EXIT_GUARD, EXIT_INTERRUPTED, EXIT_WRONG_INPUT
from student_worker import failpoints
from tests.torture.service_process import OwnProcess
from tests.torture.students.scene import Scene

STAYS_ENDED = (EXIT_DONE, EXIT_WRONG_INPUT, EXIT_GUARD, EXIT_INTERRUPTED)
MAX_STARTS = 8
"""Of one place: no test kills a worker so often, so this many mean that it does not recover."""
POLL_SECONDS = 0.01
WAIT_SECONDS = 120.0


class Place:
    """One worker of the run, or its launcher: the process that is it now, and how those before it ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: OwnProcess | None = None
        self.codes: list[int] = []
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The process id, None once it has ended."""
        return None if self.process is None else self.process.pid


class Run:
    """Workers of one output folder. A context manager that leaves no process behind.

    Args:
        scene: what runs share.
        folder: of this run: its recipe, logs and fail-point files beside its `output`.
        lighthouse: where its workers meet; None: a worker of its own, or those of a launcher.
        points: fail-points to arm, as `STILLHOUSE_FAILPOINTS` has them.
        keys: of the recipe.
    """

    def __init__(
        self, scene: Scene, folder: Path, *, lighthouse: str | None = None, points: str = "", **keys: Any
    ) -> None:
        self.scene, self.folder = scene, folder
        self.output = folder / "output"
        self.points = folder / "points"
        self.points.mkdir(parents=True)
        self.recipe = scene.recipe(folder / "recipe.yaml", output_dir=str(self.output), **keys)
        self._lighthouse = lighthouse
        self.token = "a secret of this run"
        self._environment = scene.environment
        if points:
            self._environment |= {failpoints.VARIABLE: points, failpoints.FOLDER_VARIABLE: str(self.points)}
        self.places: dict[str, Place] = {}
        self._started_with: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {}
        self._whenever: list[tuple[Callable[[], object], Callable[[], object]]] = []

    # Starting and ending

    def start(self, index: int = 0, *flags: str) -> Place:
        """Start worker `index`, or start it again."""
        own = ("--worker-index", str(index))
        return self._start(f"worker-{index}", {failpoints.WORKER_VARIABLE: str(index)}, *own, *flags)

    def launch(self, workers: int, *flags: str) -> Place:
        """Start so many workers by the launcher."""
        return self._start("launcher", {}, "--workers", str(workers), *flags)

    def _start(self, name: str, environment: dict[str, str], *flags: str) -> Place:
        place = self.places.setdefault(name, Place(name))
        place.starts += 1
        assert place.starts <= MAX_STARTS, f"{name} ends again and again: {place.codes}\n{self.told()}"
        argv = [sys.executable, "-m", "student_worker", "train", str(self.recipe), *flags]
        if self._lighthouse is not None:
            argv += ["--lighthouse", self._lighthouse]
        elif (self.output / "run.json").exists():
            argv.append("--resume")
        self._started_with[name] = (environment, flags)
        variables = {**self._environment, **environment, "STUDENT_RUN_TOKEN": self.token}
        place.process = OwnProcess(argv, self.folder / f"{name}.log", variables)
        return place

    def signal(self, number: signal.Signals, *indices: int) -> None:
        """Send a signal to these workers, or to every process that was started here."""
        names = [f"worker-{index}" for index in indices] or list(self.places)
        for process in (self.places[name].process for name in names):
            if process is not None:
                process.signal(number)

    def kill_all(self) -> None:
        """SIGKILL every worker at once, and the launcher first, which would start them again."""
        pids = [place.process.pid for place in self.places.values() if place.process is not None]
        for pid in [*pids, *(self.announced(index) for index in self._announcing())]:
            if pid is not None and _is_alive(pid):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.signal(signal.SIGCONT)
        self.kill_all()

    # Watching

    def whenever(self, condition: Callable[[], object], action: Callable[[], object]) -> None:
        """Do something once, as soon as a condition holds while the run is watched."""
        self._whenever.append((condition, action))

    def watch(self) -> None:
        """Start again what has crashed, and do what is due."""
        for name, place in self.places.items():
            if place.process is None or (code := place.process.poll()) is None:
                continue
            place.process = None
            place.codes.append(code)
            if code not in STAYS_ENDED:
                environment, flags = self._started_with[name]
                self._start(name, environment, *flags)
        for rule in list(self._whenever):
            condition, action = rule
            if condition():
                self._whenever.remove(rule)
                action()

    def until(self, condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
        """Watch the run until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.told()}"
            self.watch()
            time.sleep(POLL_SECONDS)

    @property
    def is_over(self) -> bool:
        """Whether every process has ended for good."""
        return all(place.process is None for place in self.places.values())

    def end(self) -> dict[str, int]:
        """Watch until every process has ended for good; return their last exit codes."""
        self.until(lambda: self.is_over, "the end of the run")
        return {name: place.codes[-1] for name, place in self.places.items()}

    # What can be seen from outside

    def struck_at(self, place: str) -> int | None:
        """Return the step at which a fail-point, named NAME@STEP or NAME@STEP-WORKER, has struck; None: not yet."""
        try:
            words = (self.points / f"{place}.struck").read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return None
        return int(words[1]) if len(words) > 1 else None

    def let_go(self, place: str) -> None:
        """Let those go on that a point holds."""
        (self.points / f"{place}.go").touch()

    def announced(self, index: int) -> int | None:
        """Return the process id of the worker that said last that it is ready to train."""
        try:
            return int(json.loads((self.output / f"worker-{index}.json").read_text(encoding="utf-8"))["pid"])
        except (OSError, ValueError, KeyError):
            return None

    def _announcing(self) -> list[int]:
        return [int(path.stem.partition("-")[2]) for path in self.output.glob("worker-*.json")]

    def is_ready(self, index: int) -> bool:
        """Tell whether the process that is worker `index` now is ready to train."""
        place = self.places.get(f"worker-{index}")
        pid = self.announced(index)
        return pid == place.pid if place is not None else pid is not None and _is_alive(pid)

    def records(self, event: str = "step") -> list[dict[str, Any]]:
        """Return the whole lines of metrics.jsonl of one kind."""
        try:
            text = (self.output / "metrics.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == event]

    def log(self, name: str = "worker-0") -> str:
        """Return all that a worker or the launcher has written."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def told(self) -> str:
        """Return the ends of all logs, for a test that fails."""
        tails = (f"--- {name}\n" + "\n".join(self.log(name).splitlines()[-25:]) for name in self.places)
        return "\n".join(tails) + "\n--- struck: " + ", ".join(sorted(path.name for path in self.points.iterdir()))


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
