"""Batches within their budget, and work whose caller has gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.encodings import Dense
from stillhouse.errors import TeacherInternalError, TeacherUnavailableError
from stillhouse.request import Sequence
from teacher_service.batching import Batcher, Computed, Job, Outcome, choose_batch
from teacher_service.metrics import Metrics


class Model:
    """Answers a sequence with its length; waits at the gate; remembers what it was given."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.batches: list[list[int]] = []
        self.remembered: list[tuple[bytes, bytes]] = []
        self.fault: Exception | None = None

    def compute(self, jobs: SequenceOf[Job]) -> SequenceOf[Outcome]:
        self.started.set()
        assert self.gate.wait(10)
        self.batches.append([job.num_tokens for job in jobs])
        if self.fault is not None:
            raise self.fault
        return [Computed(str(job.num_tokens).encode(), 0.0, 0.0, 0.0) for job in jobs]

    async def remember(self, items: SequenceOf[tuple[bytes, bytes]]) -> None:
        self.remembered += items


class Running:
    """A batcher with its loop, as an async context."""

    def __init__(self, model: Model) -> None:
        self._executor = ThreadPoolExecutor(1)
        self.batcher = Batcher(
            model.compute, model.remember, self._executor, Metrics(), max_batch_tokens=100, measure=lambda *_: None
        )

    async def __aenter__(self) -> Batcher:
        self._task = asyncio.create_task(self.batcher.run())
        return self.batcher

    async def __aexit__(self, *_: object) -> None:
        self.batcher.close()
        self._task.cancel()
        await asyncio.wait({self._task})
        self._executor.shutdown()


def job(length: int, key: bytes | None = b"key") -> Job:
    return Job(Sequence((0,) * length), Dense(), 1.0, 1, key, asyncio.get_running_loop().create_future())


async def test_every_job_gets_its_own_answer() -> None:
    model = Model()
    async with Running(model) as batcher:
        jobs = [job(3), job(1), job(2)]
        batcher.submit(jobs)
        assert [(await one.result).payload for one in jobs] == [b"3", b"1", b"2"]


async def test_answers_are_remembered_before_they_are_given() -> None:
    model = Model()
    async with Running(model) as batcher:
        kept, passed = job(1, key=b"a"), job(2, key=None)
        batcher.submit([kept, passed])
        await kept.result
        assert model.remembered == [(b"a", b"1")]


async def test_work_whose_caller_has_gone_never_reaches_the_model() -> None:
    model = Model()
    model.gate.clear()
    async with Running(model) as batcher:
        first, gone, last = job(1), job(2), job(3)
        batcher.submit([first])
        await asyncio.to_thread(model.started.wait, 10)
        batcher.submit([gone, last])
        gone.result.cancel()
        model.gate.set()
        await last.result
    assert model.batches == [[1], [3]]


async def test_a_failed_batch_fails_alone() -> None:
    model = Model()
    model.fault = RuntimeError("secret detail")
    async with Running(model) as batcher:
        one = job(1)
        batcher.submit([one])
        with pytest.raises(TeacherInternalError) as failure:
            await one.result
        assert "secret" not in str(failure.value)
        model.fault = None
        other = job(2)
        batcher.submit([other])
        assert (await other.result).payload == b"2"


async def test_closing_ends_those_who_wait_and_refuses_who_comes() -> None:
    model = Model()
    batcher = Running(model).batcher
    waiting = job(1)
    batcher.submit([waiting])
    batcher.close()
    with pytest.raises(TeacherUnavailableError):
        await waiting.result
    with pytest.raises(TeacherUnavailableError):
        batcher.submit([job(1)])


@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(1, 200))
def test_batches_keep_their_budget_and_starve_nobody(lengths: list[int], budget: int) -> None:
    async def choose_all() -> None:
        waiting = [job(length) for length in lengths]
        while waiting:
            oldest = waiting[0]
            batch = choose_batch(waiting, budget)
            assert oldest in batch
            sizes = [one.num_tokens for one in batch]
            assert sizes == sorted(sizes)
            assert len(batch) == 1 or len(batch) * max(sizes) <= budget
            waiting = [one for one in waiting if one not in batch]

    asyncio.run(choose_all())


async def test_a_batch_prefers_fitting_lengths() -> None:
    waiting = [job(10), job(100), job(11), job(90), job(9)]
    assert [one.num_tokens for one in choose_batch(waiting, 60)] == [9, 10, 11]
