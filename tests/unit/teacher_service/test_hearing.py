"""Questions about health are read a few at a time: who is slow makes room, who is quick is never given up."""

from __future__ import annotations

import asyncio

import pytest

from stillhouse.errors import TeacherTimeoutError
from teacher_service import hearing
from teacher_service.hearing import Hearing
from teacher_service.metrics import Metrics


class Callers:
    """Calls whose questions come when they are let go."""

    def __init__(self) -> None:
        self.hearing = Hearing(Metrics())
        self.heard = 0

    async def ask(self, come: asyncio.Event) -> None:
        async with self.hearing.reading():
            await come.wait()
            self.heard += 1


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_burst_of_questions_that_come_is_heard_to_the_last() -> None:
    callers, come = Callers(), asyncio.Event()
    count = 5 * hearing._MAX_UNREAD_QUESTIONS
    calls = [asyncio.create_task(callers.ask(come)) for _ in range(count)]
    await settle()
    come.set()
    await asyncio.gather(*calls)
    assert callers.heard == count


async def test_one_that_does_not_come_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "_TURN_SECONDS", 0.01)
    callers, come, never = Callers(), asyncio.Event(), asyncio.Event()
    come.set()
    silent = [asyncio.create_task(callers.ask(never)) for _ in range(hearing._MAX_UNREAD_QUESTIONS)]
    await settle()
    await callers.ask(come)
    with pytest.raises(TeacherTimeoutError):
        await silent[0]
    assert not any(call.done() for call in silent[1:])
    never.set()
    await asyncio.gather(*silent[1:])


async def test_one_who_leaves_while_waiting_takes_no_place() -> None:
    callers, come, never = Callers(), asyncio.Event(), asyncio.Event()
    come.set()
    holding = [asyncio.create_task(callers.ask(never)) for _ in range(hearing._MAX_UNREAD_QUESTIONS)]
    await settle()
    left = asyncio.create_task(callers.ask(come))
    await settle()
    left.cancel()
    never.set()
    await asyncio.gather(*holding)
    async with asyncio.timeout(5):
        await asyncio.gather(*(callers.ask(come) for _ in range(2 * hearing._MAX_UNREAD_QUESTIONS)))
