"""Batches within their budget, and work whose caller has gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor

import pytest

from stillhouse.encodings import Dense
from stillhouse.errors import TeacherInternalError, TeacherUnavailableError
from stillhouse.request import Sequence
from teacher_service.batching import Batcher, Computed, Job, Outcome
from teacher_service.metrics import Metrics


class Model:
    """Answers a sequence with its length; waits at the gate; remembers what it was given."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.batches: list[list[int]] = []
        self.remembered: list[tuple[bytes, bytes | memoryview]] = []
        self.fault: Exception | None = None

    def compute(self, jobs: SequenceOf[Job]) -> SequenceOf[Outcome]:
        self.started.set()
        assert self.gate.wait(10)
        self.batches.append([job.num_tokens for job in jobs])
        if self.fault is not None:
            raise self.fault
        return [Computed(str(job.num_tokens).encode(), 0.0, 0.0, 0.0) for job in jobs]

    async def remember(self, items: SequenceOf[tuple[bytes, bytes | memoryview]]) -> None:
        self.remembered += items


class Running:
    """A batcher with its loop, as an async context."""

    def __init__(self, model: Model, *, budget: Callable[[], int] = lambda: 100, delay_seconds: float = 0.0) -> None:
        self._executor = ThreadPoolExecutor(1)
        self.batcher = Batcher(
            model.compute,
            model.remember,
            self._executor,
            Metrics(),
            budget=budget,
            max_queue_delay_seconds=delay_seconds,
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


async def warm_up(batcher: Batcher, model: Model, crowd: int) -> None:
    """Let the batcher see so many at once."""
    jobs = [job(1) for _ in range(crowd)]
    batcher.submit(jobs)
    await asyncio.gather(*(one.result for one in jobs))
    model.batches.clear()


async def test_a_batch_that_is_not_full_waits_for_company_no_longer_than_allowed() -> None:
    model = Model()
    async with Running(model, delay_seconds=0.2) as batcher:
        await warm_up(batcher, model, 3)
        started = time.monotonic()
        first, second = job(10), job(10)
        batcher.submit([first])
        await asyncio.sleep(0.01)
        batcher.submit([second])
        await asyncio.gather(first.result, second.result)
        assert time.monotonic() - started >= 0.2
    assert model.batches == [[10, 10]]


@pytest.mark.parametrize("length", [50, 10], ids=["a full batch", "a batch of all who were there lately"])
async def test_what_has_no_company_to_expect_does_not_wait(length: int) -> None:
    model = Model()
    async with Running(model, delay_seconds=1e6) as batcher:
        await warm_up(batcher, model, 3 if length == 50 else 2)
        first, second = job(length), job(length)
        batcher.submit([first])
        await asyncio.sleep(0.01)
        assert model.batches == []
        batcher.submit([second])
        async with asyncio.timeout(10):
            await asyncio.gather(first.result, second.result)
    assert model.batches == [[length, length]]


async def test_a_lone_caller_does_not_wait() -> None:
    async with Running(Model(), delay_seconds=1e6) as batcher, asyncio.timeout(10):
        for _ in range(3):
            one = job(1)
            batcher.submit([one])
            await one.result


async def test_callers_that_took_turns_come_together() -> None:
    model = Model()
    async with Running(model, delay_seconds=0.5) as batcher:

        async def caller() -> None:
            for _ in range(4):
                one = job(1)
                batcher.submit([one])
                await one.result

        async with asyncio.TaskGroup() as callers:
            model.gate.clear()
            callers.create_task(caller())
            await asyncio.to_thread(model.started.wait, 10)
            callers.create_task(caller())
            await asyncio.sleep(0.01)
            model.gate.set()
    assert [len(batch) for batch in model.batches] == [1, 2, 2, 2, 1]


async def test_a_budget_that_shrinks_holds_for_the_next_batch() -> None:
    model, budget = Model(), 100
    async with Running(model, budget=lambda: budget) as batcher:
        for expected in ([[25] * 4], [[25] * 2] * 2):
            jobs = [job(25) for _ in range(4)]
            batcher.submit(jobs)
            await asyncio.gather(*(one.result for one in jobs))
            assert model.batches == expected
            model.batches.clear()
            budget = 50


async def test_of_a_batch_that_waits_for_the_models_thread_only_the_living_are_computed() -> None:
    model = Model()
    running = Running(model)
    async with running as batcher:
        other_work = threading.Event()
        running._executor.submit(other_work.wait, 10)
        gone, stays = job(2), job(3)
        batcher.submit([gone, stays])
        await asyncio.sleep(0.02)
        gone.result.cancel()
        other_work.set()
        await stays.result
    assert model.batches == [[3]]
