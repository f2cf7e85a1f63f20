"""TensorBoard and W&B: one run per training, no step twice, and never a step lost over them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from stillhouse.errors import ConfigurationError
from student_worker.cadence import Cadence
from student_worker.callbacks import Callback, Evaluation, RunView, StepRecord
from student_worker.callbacks import tracker as trackers
from student_worker.callbacks.choose import check_callbacks, make_callbacks
from student_worker.callbacks.lines import Lines
from student_worker.callbacks.to_tensorboard import FOLDER, ToTensorBoard
from student_worker.callbacks.to_wandb import ID_FILE, ToWandb, remembered
from student_worker.callbacks.tracker import Figures, Tracker
from student_worker.recipe.schema import Recipe
from student_worker.run_folder.journal import Journal
from tests.unit.student_worker.small_run import Make, evaluator

CADENCE = Cadence(20, 1, None, 20)


def record(step: int) -> StepRecord:
    return StepRecord(step, 10.0 / step, 1.0, 2.0, 1e-3, 0.5, 64, 100.0, 0.1, 0.2, 1)


def view(folder: Path, step: int = 0, *, is_first: bool = True) -> RunView:
    return RunView(folder, "run", step, 20, is_first)


class Worker:
    """A worker as its trackers and lines see it."""

    def __init__(self, folder: Path, kind: type[ToTensorBoard | ToWandb]) -> None:
        self.folder, self.journal = folder, Journal(folder)
        self.tracker = kind(CADENCE, self.journal.progress)
        self.callbacks: list[Callback] = [Lines(self.journal, CADENCE), self.tracker]

    def step(self, step: int, *, is_first: bool = True) -> None:
        for callback in self.callbacks:
            callback.on_step_end(view(self.folder, step, is_first=is_first), record(step))

    def leave(self) -> None:
        self.tracker.on_train_end(view(self.folder), "done")

    def die(self) -> None:
        """Leave the record as a kill does: what was handed over is written, nothing is closed."""
        settled = threading.Event()
        self.tracker._put(settled.set)
        assert settled.wait(20)


def scalars(folder: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(folder / FOLDER))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]


def losses(last: int) -> list[tuple[int, float]]:
    return [(step, round(10.0 / step, 4)) for step in range(1, last + 1)]


def test_tensorboard_reads_back_every_line_of_a_run(make: Make, dataset: Any, tmp_path: Path) -> None:
    journal, cadence = Journal(tmp_path), Cadence(5, 2, 2, 9)
    callbacks = [Lines(journal, cadence), ToTensorBoard(cadence, journal.progress)]
    make(callbacks=callbacks, evaluator=evaluator(dataset), cadence=cadence).run()
    lines = journal.read()
    for event, tag, name in (("step", "train/loss", "loss"), ("evaluation", "eval/kl", "kl")):
        expected = {line["step"]: line[name] for line in lines if line["event"] == event}
        assert dict(scalars(tmp_path, tag)) == pytest.approx(expected, abs=1e-4)
        assert len(scalars(tmp_path, tag)) == len(expected)
    assert [step for step, _ in scalars(tmp_path, "eval/calibration_error")] == [0, 2, 4, 5]


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path: Path) -> None:
    first = Worker(tmp_path, ToTensorBoard)
    for step in range(1, 8):
        first.step(step)
    first.die()
    second = Worker(tmp_path, ToTensorBoard)
    second.journal.restore([line for line in first.journal.progress() if line["step"] <= 4])
    for step in range(5, 9):
        second.step(step)
    second.leave()
    first.leave()
    assert scalars(tmp_path) == losses(8)


def test_a_new_first_worker_goes_on_with_tensorboard_and_adds_what_its_predecessor_could_not(tmp_path: Path) -> None:
    first, second = Worker(tmp_path, ToTensorBoard), Worker(tmp_path, ToTensorBoard)
    for step in range(1, 4):
        first.step(step)
        second.step(step, is_first=False)
    first.die()
    second.step(4, is_first=False)
    second.step(5)
    second.leave()
    first.leave()
    assert scalars(tmp_path) == losses(5)


def test_a_long_run_that_changes_hands_has_every_line_of_steps_and_evaluations_once(tmp_path: Path) -> None:
    first, second = Worker(tmp_path, ToTensorBoard), Worker(tmp_path, ToTensorBoard)
    figures = Evaluation(1.0, 2.0, 0.5, 3.0, 4.0, 0.1, None, None, None, 7)
    for step in range(1, 20):
        for worker in (first, second):
            is_first = worker is first if step < 15 else worker is second
            if worker is first and not is_first:
                continue
            worker.step(step, is_first=is_first)
            for callback in worker.callbacks:
                callback.on_evaluate(view(tmp_path, step, is_first=is_first), figures)
        if step == 14:
            first.die()
    second.leave()
    first.leave()
    assert scalars(tmp_path) == losses(19)
    assert [step for step, _ in scalars(tmp_path, "eval/kl")] == list(range(1, 20))
    assert [step for step, _ in scalars(tmp_path, "eval/loss")] == list(range(1, 20))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


class Recorded:
    """Stands in for a run of W&B."""

    resumed = False

    def __init__(self, chosen: dict[str, Any]) -> None:
        self.chosen = chosen
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append((step, figures))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def runs(offline: None, monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """The runs that W&B was asked for."""
    import wandb

    del offline
    opened: list[Recorded] = []

    def init(**chosen: Any) -> Recorded:
        opened.append(Recorded(chosen))
        return opened[-1]

    monkeypatch.setattr(wandb, "init", init)
    return opened


def test_wandb_goes_on_with_one_run_by_its_id_and_logs_no_step_twice(tmp_path: Path, runs: list[Recorded]) -> None:
    first = Worker(tmp_path, ToWandb)
    for step in range(1, 8):
        first.step(step)
    first.die()
    second = Worker(tmp_path, ToWandb)
    for step in range(5, 10):
        second.step(step)
    second.leave()
    assert len({run.chosen["id"] for run in runs}) == 1
    assert [step for run in runs for step, _ in run.logged] == list(range(1, 10))
    assert runs[1].summary == {"status": "done"}
    assert runs[1].exit_code == 0
    assert runs[0].chosen["project"] == "stillhouse"
    assert runs[0].chosen["name"] == "run"
    assert runs[0].logged[1][1]["train/loss"] == 5.0


def test_what_wandb_is_told_by_its_variables_is_left_to_it(
    tmp_path: Path, runs: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    worker = Worker(tmp_path, ToWandb)
    worker.step(1)
    worker.leave()
    assert not {"project", "name", "dir"} & runs[0].chosen.keys()
    assert runs[0].chosen["id"] == "chosen"


def test_an_id_file_that_a_kill_left_empty_is_made_anew(tmp_path: Path, offline: None) -> None:
    del offline
    (tmp_path / ID_FILE).write_text("")
    known, step = remembered(tmp_path / ID_FILE)
    assert step is None
    assert remembered(tmp_path / ID_FILE) == (known, None)
    assert json.loads((tmp_path / ID_FILE).read_text())["id"] == known


class Troubled(Tracker):
    """Fails or hangs where it is told to."""

    def __init__(self, journal: Journal, *, hangs: threading.Event | None = None) -> None:
        super().__init__("troubled", CADENCE, journal.progress)
        self._hangs = hangs

    def open(self, run: RunView, step: int) -> bool:
        del run, step
        if self._hangs is None:
            raise ConnectionError("no route to host")
        self._hangs.wait(30)
        return False

    def write(self, step: int, figures: Figures) -> None:
        raise AssertionError(f"never open: {step} {figures}")

    def close(self, status: str | None) -> None:
        del status


def test_a_tracker_that_fails_costs_a_warning_and_no_step(make: Make, tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert make(callbacks=[Troubled(Journal(tmp_path))]).run().status == "done"
    failed = [line for line in logs if line["event"] == "tracker_failed"]
    assert len(failed) == 1
    assert failed[0]["log_level"] == "warning"
    assert "no route to host" in failed[0]["reason"]


def test_a_tracker_that_hangs_holds_up_neither_the_run_nor_its_end(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(trackers, "MAX_WAITING", 3)
    released = threading.Event()
    hanging = Troubled(Journal(tmp_path), hangs=released)
    with capture_logs() as logs:
        assert make(callbacks=[hanging]).run().status == "done"
    released.set()
    assert {"tracker_is_slow", "tracker_left_behind"} <= {line["event"] for line in logs}


def recipe(tmp_path: Path, **keys: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "teacher": "127.0.0.1:1",
            "output_dir": tmp_path,
            "data": {"sources": ["x.txt"], "held_out_fraction": 0.1},
            "student": {"kind": "fixture"},
            **keys,
        }
    )


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ConfigurationError, match=r"report_to wandb: .*stillhouse\[wandb\]"):
        check_callbacks(recipe(tmp_path, report_to=["wandb"]))


MODULE = """
from student_worker.callbacks import Callback

class Mine(Callback):
    pass

class NeedsMore(Callback):
    def __init__(self, what):
        pass

class NoCallback:
    pass
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere_to_be_found:Mine", "cannot be imported: No module named 'nowhere_to_be_found'; put its folder on"),
        ("mine_of_this_test:Other", "'mine_of_this_test:Other' does not exist"),
        ("mine_of_this_test:NoCallback", "is no subclass of student_worker.callbacks.Callback"),
        ("broken_of_this_test:Mine", "cannot be imported: ZeroDivisionError"),
        ("mine_of_this_test:NeedsMore", "cannot be made without arguments: TypeError"),
    ],
)
def test_a_callback_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    (tmp_path / "mine_of_this_test.py").write_text(MODULE)
    (tmp_path / "broken_of_this_test.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    chosen = recipe(tmp_path, callbacks=[name])
    if "NeedsMore" not in name:
        with pytest.raises(ConfigurationError, match=said):
            check_callbacks(chosen)
    with pytest.raises(ConfigurationError, match=said):
        make_callbacks(chosen, CADENCE, evaluates=False)
    good = recipe(tmp_path, callbacks=["mine_of_this_test:Mine"], early_stopping_patience=2, eval_steps=1)
    check_callbacks(good)
    names = [type(callback).__name__ for callback in make_callbacks(good, CADENCE, evaluates=True)]
    assert names == ["Lines", "EarlyStopping", "Mine"]
