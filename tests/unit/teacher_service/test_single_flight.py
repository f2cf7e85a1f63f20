"""One computation per key, whoever comes and goes meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from teacher_service.single_flight import SingleFlight


async def test_the_second_to_come_waits_for_the_first() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    first, second, other = flights.board("a"), flights.board("a"), flights.board("b")
    assert (first.is_first, second.is_first, other.is_first) == (True, False, True)
    first.result.set_result(7)
    assert await first.wait() == await second.wait() == 7


async def test_a_landed_flight_is_not_boarded_again() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    first = flights.board("a")
    first.result.set_result(7)
    assert flights.board("a").is_first


async def test_who_leaves_does_not_end_it_for_the_others() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    first, second = flights.board("a"), flights.board("a")
    waiting = asyncio.create_task(first.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    first.leave()
    assert not second.result.cancelled()
    second.result.set_result(7)
    assert await second.wait() == 7


async def test_the_last_to_leave_cancels_it() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    first, second = flights.board("a"), flights.board("a")
    first.leave()
    second.leave()
    assert first.result.cancelled()
    assert flights.board("a").is_first


async def test_a_failure_reaches_everybody() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    first, second = flights.board("a"), flights.board("a")
    first.result.set_exception(ValueError("no"))
    for ticket in (first, second):
        with pytest.raises(ValueError, match="no"):
            await ticket.wait()
