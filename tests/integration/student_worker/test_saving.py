"""A run's own checkpoints: the best is exported or the run says why not, and nothing is written twice or of nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
import torch
from torch import nn

from stillhouse.errors import CheckpointError, ConfigurationError
from student_worker.callbacks.best import Best
from student_worker.checkpoints import CheckpointStore
from student_worker.checkpoints.layout import TENSORS_FILE
from student_worker.optimizer import StudentOptimizer
from student_worker.saving import RunSaving
from student_worker.state import WorkerState


class Run:
    """A worker of a run in a folder, whose weights are as many as its step."""

    def __init__(self, folder: Path, *, keep_last: int = 1, **identity: str) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(4, 3)
        self.state = WorkerState(self.module, StudentOptimizer(self.module), {"recipe": "abc", **identity})
        self.saving = RunSaving(CheckpointStore(folder, keep_last), self.state, "loss")

    def train(self, step: int, best: float | None = None) -> None:
        """Go to `step` and save, as the best where a figure is given."""
        with torch.no_grad():
            self.module.weight.fill_(step)
        self.state.step = step
        self.saving.save(None if best is None else Best(step, "loss", best))

    def weight(self) -> float:
        return float(self.module.weight.detach().mean())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Best after 4 of 12 steps."""
    run = Run(tmp_path)
    run.saving.resume(goes_on=False)
    run.train(4, best=0.25)
    for step in (8, 12):
        run.train(step)
    run.saving.saved(wait=True)
    return run


def test_the_best_weights_replace_the_last_ones_and_nothing_else(run: Run) -> None:
    assert run.weight() == 12
    assert run.saving.load_best() == 4
    assert run.weight() == 4
    assert run.state.step == 12


def test_a_best_that_is_the_last_needs_no_reading(run: Run, tmp_path: Path) -> None:
    run.train(16, best=0.125)
    run.saving.saved(wait=True)
    (tmp_path / "checkpoint-16" / TENSORS_FILE).unlink()
    assert run.saving.load_best() == 16
    assert run.weight() == 16


def test_a_best_that_cannot_be_read_is_a_stop_that_says_how_to_go_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-4" / TENSORS_FILE).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"best checkpoint cannot be exported.*without load_best_model_at_end"):
        run.saving.load_best()
    assert run.weight() == 12


def test_without_any_evaluation_the_last_weights_stay_and_it_is_said(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train(3)
    run.saving.saved(wait=True)
    with structlog.testing.capture_logs() as logs:
        assert run.saving.load_best() == 3
    assert [line["event"] for line in logs] == ["no_best_checkpoint"]


def test_a_resumed_run_goes_on_from_the_newest_and_knows_the_best(run: Run, tmp_path: Path) -> None:
    assert run.state.step == 12
    (tmp_path / "best.json").unlink()
    again = Run(tmp_path)
    again.saving.resume(goes_on=True)
    assert (again.state.step, again.weight()) == (12, 12)
    assert (again.saving.best() or {})["step"] == 4
    with structlog.testing.capture_logs() as logs:
        again.saving.save()
        assert again.saving.saved(wait=True) == []
    assert logs == [], "what is there already is not written again"
    again.train(16)
    again.saving.saved(wait=True)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-16", "best.json"}


def test_nothing_is_saved_before_the_first_step_and_no_step_twice(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.saving.save()
    assert list(run.saving.saved(wait=True)) == []
    run.train(3)
    run.train(3)
    assert list(run.saving.saved(wait=True)) == [str(tmp_path / "checkpoint-3")]


def test_a_run_of_another_recipe_is_refused_by_what_differs(run: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its teacher is None, this one's is other"):
        Run(tmp_path, teacher="other").saving.resume(goes_on=True)
    assert run.state.step == 12


@pytest.mark.usefixtures("run")
def test_a_new_run_does_not_begin_among_the_checkpoints_of_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"checkpoint-12 is there already.*--resume.*checkpoint_dir"):
        Run(tmp_path).saving.resume(goes_on=False)
