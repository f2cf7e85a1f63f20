"""What ends a run early: callbacks, guards, a peer that computed other samples; and at which step that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.data import Order
from stillhouse.errors import GuardError
from student_worker.cadence import Cadence
from student_worker.callbacks import Callback, Evaluation, RunView, StepRecord, Stop
from student_worker.callbacks.best import Best, BestSoFar, EarlyStopping
from student_worker.parts import Outcome, SavesNothing
from student_worker.steps import Steps
from tests.unit.student_worker.small_run import (
    Make,
    Room,
    RoomGroup,
    TableTeacher,
    evaluator,
    journal,
    run_together,
    weights,
)


class StopsAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        del run
        if step.step == self.step:
            raise Stop("seen enough")


def figures(value: float) -> Evaluation:
    return Evaluation(value, value, 0.5, value, 1.0, 0.1, None, None, None, 7)


def test_a_stop_ends_the_run_after_that_step_with_its_reason(make: Make, tmp_path: Path) -> None:
    outcome = make(callbacks=[StopsAfter(3)]).run()
    assert (outcome.status, outcome.step, outcome.reason) == ("stopped", 3, "seen enough")
    assert [line["step"] for line in journal(tmp_path)] == [1, 2, 3]
    assert make(callbacks=[StopsAfter(5)]).run().status == "done", "there was nothing left to stop"


@pytest.mark.parametrize("who", [0, 1])
def test_a_stop_in_any_worker_ends_all_after_the_same_step_with_the_same_weights(make: Make, who: int) -> None:
    room = Room()
    trainers = [make(group=RoomGroup(room, rank)) for rank in range(2)]
    trainers[who]._hooks._callbacks = [StopsAfter(3)]
    outcomes = run_together(trainers)
    assert [(o.status, o.step) for o in outcomes if isinstance(o, Outcome)] == [("stopped", 3)] * 2
    alone = make(callbacks=[StopsAfter(3)])
    alone.run()
    assert torch.equal(weights(trainers[0]), weights(alone))
    assert torch.equal(weights(trainers[1]), weights(alone))


def test_a_stop_outlives_a_vote_that_is_lost(make: Make) -> None:
    room = Room(fails=[4])
    trainers = [make(group=RoomGroup(room, rank)) for rank in range(2)]
    trainers[1]._hooks._callbacks = [StopsAfter(3)]
    outcomes = run_together(trainers)
    assert [(o.status, o.step) for o in outcomes if isinstance(o, Outcome)] == [("stopped", 3)] * 2


def test_a_peer_with_another_order_is_caught_by_all_before_any_weight_moves(make: Make, dataset: Any) -> None:
    room = Room()
    others = Steps(dataset, Order(len(dataset), 4, dataset.fingerprint), 6, 4)
    trainers = [make(group=RoomGroup(room, 0)), make(group=RoomGroup(room, 1), steps=others)]
    before = weights(trainers[0])
    outcomes = run_together(trainers)
    for outcome, shard in zip(outcomes, (2, 0), strict=True):
        assert isinstance(outcome, GuardError)
        assert f"step 1: micro-shard {shard} was computed over" in str(outcome)
    assert torch.equal(weights(trainers[0]), before)


def test_a_loss_above_the_ceiling_stops_before_any_weight_moves(make: Make) -> None:
    free = make()
    free.run()
    first = free.outcome.losses
    assert first is not None
    trainer = make(max_loss=0.5 * first.loss)
    before = weights(trainer)
    with pytest.raises(GuardError, match=r"step 1: the loss is .*, above max_loss .*raise max_loss"):
        trainer.run()
    assert torch.equal(weights(trainer), before)
    assert trainer.outcome.status == "failed"
    assert make(max_loss=1e6).run().status == "done"


class Watches(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on_train_begin(self, run: RunView) -> None:
        self.seen.append(("begin", run.step))

    def on_step_end(self, run: RunView, step: StepRecord) -> None:
        assert run.step == step.step
        self.seen.append(("step", step.step))

    def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
        del evaluation
        self.seen.append(("evaluate", run.step))

    def on_save(self, run: RunView, checkpoint: str) -> None:
        del run
        self.seen.append(("save", checkpoint))

    def on_train_end(self, run: RunView, status: str) -> None:
        del run
        self.seen.append(("end", status))


class Writes(SavesNothing):
    """Completes each checkpoint by the time that somebody asks."""

    def __init__(self) -> None:
        self.asked: list[Best | None] = []
        self.fresh: list[str] = []

    def save(self, best: Best | None, *, background: bool = True) -> None:
        del background
        self.asked.append(best)
        self.fresh.append(f"number-{len(self.asked)}")

    def saved(self, *, wait: bool = False) -> Sequence[str]:
        del wait
        fresh, self.fresh = self.fresh, []
        return fresh


def test_hooks_come_in_the_order_of_the_run(make: Make, dataset: Any) -> None:
    watches = Watches()
    make(callbacks=[watches], evaluator=evaluator(dataset), cadence=Cadence(2, 1, None, 2), saving=Writes()).run()
    begin, *middle, end = watches.seen
    assert (begin, end) == (("begin", 0), ("end", "done"))
    assert middle[:5] == [("evaluate", 0), ("step", 1), ("step", 2), ("evaluate", 2), ("save", "number-1")]


def test_two_workers_are_told_of_the_first_evaluation_once_it_is_known_who_writes(make: Make, dataset: Any) -> None:
    room, watches = Room(), [Watches(), Watches()]
    told: list[tuple[int, bool]] = []

    class Notes(Callback):
        def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
            del evaluation
            told.append((run.step, run.is_first))

    trainers = [
        make(group=RoomGroup(room, rank), callbacks=[watches[rank], Notes()], evaluator=evaluator(dataset))
        for rank in range(2)
    ]
    run_together(trainers)
    assert watches[0].seen[:3] == [("begin", 0), ("evaluate", 0), ("step", 1)]
    assert watches[1].seen == watches[0].seen
    assert sorted(told) == [(0, False), (0, True), (5, False), (5, True)]


@pytest.mark.parametrize("hook", ["on_train_begin", "on_step_end", "on_evaluate"])
def test_a_hook_that_fails_stops_the_run_and_is_named(make: Make, dataset: Any, hook: str) -> None:
    class Broken(Callback):
        pass

    def fail(*_: Any) -> None:
        raise KeyError("what")

    setattr(Broken, hook, fail)
    trainer = make(callbacks=[Broken()], evaluator=evaluator(dataset))
    with pytest.raises(GuardError, match=rf"callback Broken failed in {hook} after step \d: KeyError: 'what'"):
        trainer.run()
    assert trainer.outcome.status == "failed"


def test_a_hook_that_fails_at_the_very_end_does_not_cost_the_run(make: Make) -> None:
    class Broken(Callback):
        def on_train_end(self, run: RunView, status: str) -> None:
            del run, status
            raise OSError("gone")

    watches = Watches()
    assert make(callbacks=[Broken(), watches]).run().status == "done"
    assert watches.seen[-1] == ("end", "done")


def test_early_stopping_counts_evaluations_in_a_row_that_are_no_better() -> None:
    view = RunView(Path(), "run", 0, 9, is_first=True)
    stopping = EarlyStopping("loss", patience=2, threshold=0.1)
    for value in (5.0, 4.0, 3.95, 3.5, 3.45):
        stopping.on_evaluate(view, figures(value))
    resumed = EarlyStopping("loss", patience=2, threshold=0.1)
    resumed.restore(stopping.progress())
    resumed.on_train_begin(view)
    with pytest.raises(Stop, match=r"early stopping: the held-out loss was not lower than 3\.4"):
        resumed.on_evaluate(view, figures(3.4))
    with pytest.raises(Stop):
        resumed.on_train_begin(view)
    other = EarlyStopping("kl", patience=2)
    other.restore(stopping.progress())
    other.on_evaluate(view, figures(9.0))


def test_early_stopping_ends_the_run_in_every_worker_at_the_same_step(make: Make, dataset: Any) -> None:
    def stopping() -> list[Callback]:
        return [EarlyStopping("loss", patience=2, threshold=100.0)]

    cadence = Cadence(5, 1, 1, 9)
    alone = make(callbacks=stopping(), evaluator=evaluator(dataset), cadence=cadence)
    outcome = alone.run()
    assert (outcome.status, outcome.step) == ("stopped", 2)
    room = Room()
    trainers = [
        make(group=RoomGroup(room, rank), callbacks=stopping(), evaluator=evaluator(dataset), cadence=cadence)
        for rank in range(2)
    ]
    outcomes = run_together(trainers)
    assert [(o.status, o.step) for o in outcomes if isinstance(o, Outcome)] == [("stopped", 2)] * 2
    assert torch.equal(weights(trainers[1]), weights(alone))
    again = make(resumed=alone._parts.state, callbacks=stopping(), evaluator=evaluator(dataset), cadence=cadence).run()
    assert (again.status, again.step) == ("stopped", 2), "what was enough before a resume is enough after it"


def test_the_best_evaluation_is_saved_and_outlives_a_resume(make: Make, dataset: Any) -> None:
    saving, best = Writes(), BestSoFar("kl")
    first = make(evaluator=evaluator(dataset), cadence=Cadence(3, 1, 1, 9), saving=saving, best=best)
    first.run()
    assert [b.step for b in saving.asked if b is not None] == [1, 2, 3]
    assert best.best is not None
    resumed = BestSoFar("kl")
    make(resumed=first._parts.state, best=resumed, cadence=Cadence(3, 1, 1, 9))
    assert resumed.best == best.best
    resumed.on_evaluate(RunView(Path(), "run", 4, 9, is_first=True), figures(best.best.value))
    assert resumed.best == best.best, "an equal one is no better"
    resumed.on_evaluate(RunView(Path(), "run", 5, 9, is_first=True), figures(0.5 * best.best.value))
    assert resumed.at(5) is not None
    assert resumed.at(4) is None


def test_a_smoke_run_ends_after_its_steps_and_the_whole_is_projected(make: Make) -> None:
    cadence = Cadence(1000, 1, 100, 300, smoke_steps=2)
    teacher = TableTeacher()
    outcome = make(cadence=cadence, teacher=teacher).run()
    assert (outcome.status, outcome.step, len(outcome.step_seconds)) == ("done", 2, 2)
    # Eleven evaluations, at 0, 100, ..., 1000; four checkpoints, at 300, 600, 900 and 1000.
    assert cadence.projected_seconds(2.0, 30.0, 5.0) == 2000 + 11 * 30 + 4 * 5
    assert Cadence(1000, 1, None, 1000).projected_seconds(0.0, 1.0, 0.0) == 2
    assert Cadence(1000, 1, 0, 1000).projected_seconds(0.0, 1.0, 0.0) == 0
    assert Cadence(1001, 1, 100, 1000).projected_seconds(0.0, 1.0, 100.0) == 12 + 200
