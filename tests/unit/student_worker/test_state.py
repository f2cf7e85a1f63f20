"""A worker's state: taken over whole or not at all, and only by the run that it is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.errors import CheckpointError
from student_worker.optimizer import StudentOptimizer
from student_worker.state import WorkerState

Tensors = dict[str, Tensor]


class Trained:
    """A module with a tied weight, a frozen one and a saved buffer, some steps on."""

    def __init__(self, steps: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = nn.Module()
        self.module.body = nn.Linear(4, 4)
        self.module.head = nn.Linear(4, 4)
        self.module.head.weight = self.module.body.weight
        self.module.base = nn.Linear(4, 4).requires_grad_(False)
        self.module.register_buffer("seen", torch.tensor(float(steps)))
        self.module.register_buffer("scratch", torch.tensor(float(seed)), persistent=False)
        self.optimizer = StudentOptimizer(self.module)
        self.state = WorkerState(self.module, self.optimizer, {"recipe": "a"})
        for step in range(steps):
            self.optimizer.apply(torch.full((self.optimizer.num_parameters,), 1.0 + step), 0.1)
            self.state.step, self.state.num_tokens = step + 1, 10 * (step + 1)

    def copy(self) -> tuple[Tensors, dict[str, Any]]:
        tensors, metadata = self.state.state()
        return {name: tensor.clone() for name, tensor in tensors.items()}, metadata

    def assert_as(self, other: tuple[Tensors, dict[str, Any]]) -> None:
        tensors, metadata = self.copy()
        assert metadata == other[1]
        assert tensors.keys() == other[0].keys()
        assert all(torch.equal(tensors[name], other[0][name]) for name in tensors)


def test_a_state_is_taken_over_whole() -> None:
    theirs, ours = Trained(3), Trained(0, seed=1)
    ours.state.load(*theirs.copy())
    ours.assert_as(theirs.copy())
    for trained in (theirs, ours):
        trained.optimizer.apply(torch.ones(trained.optimizer.num_parameters), 0.1)
    ours.assert_as(theirs.copy())


def test_it_holds_what_is_trained_and_saved_once_and_nothing_frozen() -> None:
    names = {name for name in Trained(1).copy()[0] if name.startswith("model.")}
    assert names == {"model.body.weight", "model.body.bias", "model.head.bias", "model.seen"}


def other_shape(tensors: Tensors, _: dict[str, Any]) -> None:
    tensors["model.head.bias"] = torch.zeros(5)


def missing_weight(tensors: Tensors, _: dict[str, Any]) -> None:
    del tensors["model.body.bias"]


def missing_moment(tensors: Tensors, _: dict[str, Any]) -> None:
    del tensors["optimizer.exp_avg.body.bias"]


def missing_step(_: Tensors, metadata: dict[str, Any]) -> None:
    del metadata["step"]


def other_run(_: Tensors, metadata: dict[str, Any]) -> None:
    metadata["identity"] = {"recipe": "b"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_shape, r"head\.bias is \[5\]; this student's is \[4\]"),
        (missing_weight, r"body\.bias is absent"),
        (missing_moment, r"holds no optimizer\.exp_avg\.body\.bias"),
        (missing_step, "holds no step"),
        (other_run, "its recipe is b, this one's is a"),
    ],
)
def test_a_state_of_another_student_or_run_changes_nothing(
    change: Callable[[Tensors, dict[str, Any]], None], named: str
) -> None:
    ours = Trained(2, seed=1)
    before, (tensors, metadata) = ours.copy(), Trained(3).copy()
    change(tensors, metadata)
    with pytest.raises(CheckpointError, match=named):
        ours.state.load(tensors, metadata)
    ours.assert_as(before)


def test_the_weights_alone_leave_step_and_moments() -> None:
    best, last = Trained(1), Trained(3)
    (before, metadata), (tensors, _) = last.copy(), best.copy()
    last.state.load_weights(tensors)
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    last.assert_as(({**before, **weights}, metadata))
