"""What a worker that comes to be first does for the one before it, which may have died over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from student_worker.cadence import Cadence
from student_worker.callbacks import Callback, Evaluation, RunView
from student_worker.callbacks.best import Best, BestSoFar
from student_worker.elastic.group import Group, Membership
from student_worker.elastic.reduction import GradientSum, sum_scalars
from student_worker.parts import SavesNothing
from student_worker.state import WorkerState
from tests.unit.student_worker.small_run import Make, evaluator, journal


class OfTwo(Membership):
    """One of two workers, which computes all."""

    def all_shards(self, step: int, num_shards: int) -> list[range]:
        del step
        return [range(num_shards)] * 2


class Promoted(Group):
    """A worker that does every step alone, and is first from some step on."""

    def __init__(self, first_from: int) -> None:
        self._first_from, self._step = first_from, 0

    def start_step(self) -> Membership:
        return OfTwo(self._step, 0 if self._step >= self._first_from else 1, 2)

    def reduce(self, tree: GradientSum, scalars: Tensor) -> tuple[Tensor, Tensor]:
        return tree.total(None), sum_scalars(scalars, None, tree.device)

    def commit(self) -> bool:
        self._step += 1
        return True

    def close(self) -> None:
        """There is nobody to leave."""


class Notes(SavesNothing):
    """Notes after which step it was asked, and whether for the best."""

    def __init__(self) -> None:
        self.state: WorkerState | None = None
        self.asked: list[tuple[int, bool]] = []

    def save(self, best: Best | None, *, background: bool = True) -> None:
        del background
        assert self.state is not None
        self.asked.append((self.state.step, best is not None))


@pytest.mark.parametrize(
    ("first_from", "asked"),
    [
        # Due after steps 2, 4 and 5, the last; the end of a run asks once more.
        (0, [2, 4, 5, 5]),
        # First from the step after 2 on: it saves those weights before they move.
        (2, [2, 4, 5, 5]),
        (3, [4, 5, 5]),
        (9, []),
    ],
)
def test_a_checkpoint_that_the_first_worker_died_over_is_written_by_its_successor(
    make: Make, first_from: int, asked: list[int]
) -> None:
    notes = Notes()
    view = RunView(Path(), "run", 0, 5, is_first=False)
    trainer = make(group=Promoted(first_from), saving=notes, cadence=Cadence(5, 1, None, 2), view=view)
    notes.state = trainer._parts.state
    trainer.run()
    assert [step for step, _ in notes.asked] == asked


def test_the_best_that_the_first_worker_died_over_is_written_by_its_successor(make: Make, dataset: Any) -> None:
    notes = Notes()
    fields = {"saving": notes, "best": BestSoFar("kl"), "evaluator": evaluator(dataset)}
    trainer = make(group=Promoted(3), cadence=Cadence(5, 1, 3, 9), **fields)
    notes.state = trainer._parts.state
    trainer.run()
    assert notes.asked == [(3, True), (5, True), (5, False)]


def test_the_evaluation_of_the_start_is_told_before_the_first_weight_moves(
    make: Make, dataset: Any, tmp_path: Path
) -> None:
    seen: list[tuple[int, int, bool]] = []

    class Watch(Callback):
        def on_evaluate(self, run: RunView, evaluation: Evaluation) -> None:
            del evaluation
            seen.append((run.step, trainer._parts.state.step, run.is_first))

    trainer = make(group=Promoted(0), callbacks=[Watch()], evaluator=evaluator(dataset))
    trainer.run()
    assert seen == [(0, 0, True), (5, 5, True)]
    assert [line["step"] for line in journal(tmp_path, "evaluation")] == [0, 5]


def test_a_newcomer_does_not_tell_of_weights_that_it_has_given_up(make: Make, dataset: Any, tmp_path: Path) -> None:
    peer = make(cadence=Cadence(2, 1, None, 9))
    peer.run()

    class Heals(Promoted):
        def start_step(self) -> Membership:
            if self._step == 0:
                tensors, metadata = peer._parts.state.state()
                newcomer._parts.state.load({name: tensor.clone() for name, tensor in tensors.items()}, metadata)
                self._step = 2
            return super().start_step()

    newcomer = make(group=Heals(0), evaluator=evaluator(dataset))
    outcome = newcomer.run()
    assert [step for step, _ in outcome.evaluations] == [5]
    assert [line["step"] for line in journal(tmp_path)] == [1, 2, 3, 4, 5]
    healed = newcomer._parts.metrics.registry.get_sample_value("student_healed_total")
    assert healed == 1
