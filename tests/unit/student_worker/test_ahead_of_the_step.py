"""Answers ahead of the step while workers come and go: what is still needed is kept, and asked for once."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.asking import Asking
from stillhouse.data import Order
from stillhouse.encodings import Dense
from stillhouse.providers import Answer
from stillhouse.request import LogitsRequest
from student_worker.elastic.group import Membership, SoloGroup
from student_worker.elastic.reduction import GradientSum
from student_worker.patience import PatientTeacher
from student_worker.prefetch import Key, Piece, Prefetcher
from student_worker.scalars import shard_scalars
from student_worker.shard_step import NO_LOSS
from student_worker.steps import Steps
from tests.unit.student_worker.small_run import BagOfBigrams, Make, N, TableTeacher

M = 4
NUM_PARAMETERS = sum(parameter.numel() for parameter in BagOfBigrams().module.parameters())


class Changing(SoloGroup):
    """A group whose memberships are written down; the other workers' parts of a step are made up."""

    def __init__(self, steps: Steps, memberships: list[tuple[int, ...]]) -> None:
        self._steps, self._memberships, self._done = steps, memberships, 0

    def start_step(self) -> Membership:
        return Membership(self._done, *self._memberships[self._done])

    def reduce(self, tree: GradientSum, scalars: Tensor) -> tuple[Tensor, Tensor]:
        del tree
        ids = self._steps.shard_ids(self._done)
        mine = self.start_step().shards(self._done, M)
        for shard in set(range(M)) - set(mine):
            scalars[shard] = shard_scalars(NO_LOSS, ids[shard])
        return torch.zeros(NUM_PARAMETERS), scalars

    def commit(self) -> bool:
        self._done += 1
        return True


class Watched(TableTeacher):
    """Counts how often each micro-shard was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[Key] = Counter()
        self.keys: dict[int, Key] = {}

    def answer(self, request: LogitsRequest) -> Answer:
        self.asked[self.keys[id(request)]] += 1
        return super().answer(request)


@pytest.mark.parametrize(
    ("memberships", "dropped"),
    [
        # One worker becomes two after two steps: of what was fetched, the other half is the peer's now.
        ([(0, 1), (0, 1), (1, 2), (1, 2), (1, 2)], set()),
        # And is alone again: what it let go of is asked for once more, and comes from the teacher's cache.
        ([(0, 1), (0, 1), (1, 2), (1, 2), (0, 1)], {(4, 0), (4, 1)}),
        # Its rank changes: what it held is the peer's. (Before the first quorum it had asked as if it were alone.)
        ([(0, 2), (0, 2), (1, 2), (1, 2), (1, 2)], {(2, 2), (2, 3)}),
        # It is a newcomer in the third step, of which it computes nothing, and has its half of the next ones.
        ([(0, 1), (0, 1), (1, 2, 1), (1, 2), (1, 2)], {(3, 2), (3, 3), (4, 2), (4, 3)}),
    ],
)
def test_a_change_of_world_size_asks_again_for_nothing_that_is_held_and_still_needed(
    make: Make, dataset: Any, memberships: list[tuple[int, ...]], dropped: set[Key]
) -> None:
    teacher, stopping = Watched(), threading.Event()
    steps = Steps(dataset, Order(len(dataset), 3, dataset.fingerprint), 6, M)
    asking, kept = Asking(Dense(), 2.0, N, "f"), []

    def piece(key: Key) -> Piece:
        request = asking.request(steps.shard(*key))
        kept.append(request)  # so that no other ever has its id
        teacher.keys[id(request)] = key
        return Piece(request, 1)

    prefetcher = Prefetcher(PatientTeacher(teacher, 1.0, stopping), piece, max_bytes=100, stopping=stopping)
    group = Changing(steps, memberships)
    make(steps=steps, group=group, prefetcher=prefetcher).run()
    prefetcher.close()
    needed = {
        (step, shard)
        for step, membership in enumerate(memberships)
        for shard in Membership(step, *membership).shards(step, M)
    }
    assert needed <= teacher.asked.keys(), "every micro-shard of ours was learnt from its own answer"
    twice = {key for key in needed if teacher.asked[key] > 1}
    assert twice <= dropped
    assert max(teacher.asked.values()) <= 2
    assert prefetcher.num_held == 0


def test_the_order_of_the_questions_follows_from_the_plan_alone(make: Make, dataset: Any) -> None:
    orders = []
    for _ in range(2):
        asked: list[Key] = []
        teacher, stopping = TableTeacher(), threading.Event()
        steps = Steps(dataset, Order(len(dataset), 3, dataset.fingerprint), 6, M)
        asking = Asking(Dense(), 2.0, N, "f")

        def piece(key: Key, asked: list[Key] = asked, steps: Steps = steps, asking: Asking = asking) -> Piece:
            asked.append(key)
            return Piece(asking.request(steps.shard(*key)), 30)

        prefetcher = Prefetcher(PatientTeacher(teacher, 1.0, stopping), piece, max_bytes=150, stopping=stopping)
        make(steps=steps, prefetcher=prefetcher).run()
        prefetcher.close()
        orders.append(asked)
    assert orders[0] == orders[1]
    first = list(dict.fromkeys(orders[0]))
    assert first == sorted(first)
