"""The schedule is a pure function of the step, and the same one as transformers'."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_worker.schedule import Schedule, SchedulerType

KINDS: tuple[SchedulerType, ...] = get_args(SchedulerType)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_rates_equal_those_of_transformers(kind: SchedulerType, warmup: int) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = get_scheduler(
        "constant_with_warmup" if kind == "constant" else kind,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=20,
    )
    ours = Schedule(0.5, warmup, 20, kind)
    for step in range(20):
        assert ours.at(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


@given(st.integers(1, 1000), st.data(), st.sampled_from(KINDS))
def test_the_rate_stays_between_zero_and_the_highest(steps: int, data: st.DataObject, kind: SchedulerType) -> None:
    schedule = Schedule(1e-3, data.draw(st.integers(0, steps)), steps, kind)
    assert 0.0 <= schedule.at(data.draw(st.integers(0, steps - 1))) <= 1e-3
