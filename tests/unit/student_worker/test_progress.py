"""What goes on where it was after a resume: kept with the weights, and given to whoever asks for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from student_worker.callbacks import Callback, RunView, StepRecord
from student_worker.callbacks.best import Best
from student_worker.checkpoints import CheckpointStore
from student_worker.optimizer import StudentOptimizer
from student_worker.saving import RunSaving
from student_worker.state import WorkerState
from tests.unit.student_worker.small_run import Make


class Counts(Callback):
    """A user's own callback that has something to keep."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        del run, step
        self.steps += 1

    def progress(self) -> int:
        return self.steps

    def restore(self, progress: int) -> None:
        self.steps = progress


def test_callbacks_that_keep_something_go_on_after_a_resume_two_of_one_class_too(make: Make) -> None:
    first, second, fresh = Counts(), Counts(), Counts()
    second.steps = 100
    whole = make(callbacks=[first, second])
    whole.run()
    resumed = [Counts(), Counts()]
    make(resumed=whole._parts.state, callbacks=[*resumed, fresh])
    assert [callback.steps for callback in resumed] == [5, 105]
    assert fresh.steps == 0


def test_a_state_keeps_what_nobody_of_this_process_asked_for(make: Make) -> None:
    whole = make(callbacks=[Counts()])
    whole.run()
    passed_on = make(resumed=whole._parts.state)
    counts = Counts()
    make(resumed=passed_on._parts.state, callbacks=[counts])
    assert counts.steps == 5


def test_a_healed_worker_takes_over_what_its_peer_counted(make: Make) -> None:
    ahead, behind = Counts(), Counts()
    peer = make(callbacks=[ahead])
    peer.run()
    newcomer = make(callbacks=[behind])
    tensors, metadata = peer._parts.state.state()
    newcomer._parts.state.load({name: t.clone() for name, t in tensors.items()}, json.loads(json.dumps(metadata)))
    assert behind.steps == 5


class Store:
    """Notes what it is asked to write."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Any, bool]] = []

    def save(self, step: int, tensors: Any, metadata: Any, *, best: Any, background: bool) -> str:
        del tensors, metadata
        self.asked.append((step, best, background))
        return f"checkpoint-{step}"


def test_nothing_is_copied_where_a_checkpoint_is_to_be_awaited(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    module = nn.Linear(2, 2)
    state = WorkerState(module, StudentOptimizer(module), {})
    store, notes = CheckpointStore(tmp_path), Store()
    monkeypatch.setattr(store, "save", notes.save)
    state.step = 3
    RunSaving(store, state, "loss", background=False).save()
    assert notes.asked == [(3, None, False)]


@pytest.mark.parametrize("awaits", [False, True])
def test_one_checkpoint_a_step_unless_it_turns_out_to_be_the_best(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, awaits: bool
) -> None:
    module = nn.Linear(2, 2)
    state = WorkerState(module, StudentOptimizer(module), {})
    store, notes = CheckpointStore(tmp_path), Store()
    monkeypatch.setattr(store, "save", notes.save)
    saving = RunSaving(store, state, "loss", awaits_best=awaits)
    best = Best(4, "loss", 1.0)
    saving.save(best)
    for step, marked in ((3, None), (4, None), (4, best), (4, best), (4, None), (5, None)):
        state.step = step
        saving.save(marked)
    known = best.as_json()
    assert notes.asked == [(3, None, True), (4, None, True), (4, known, not awaits), (5, None, True)]
