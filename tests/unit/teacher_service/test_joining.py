"""Questions that come while others are on their way go together, and everybody gets their own answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as SequenceOf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_service.joining import Joined


class Trips:
    """Answers a key with its tenfold, when it is let go."""

    def __init__(self) -> None:
        self.keys: list[list[int]] = []
        self.num_bytes: list[int] = []
        self.go = asyncio.Semaphore(0)

    async def __call__(self, keys: SequenceOf[int], num_bytes: int) -> list[int] | None:
        self.keys.append(list(keys))
        self.num_bytes.append(num_bytes)
        await self.go.acquire()
        if 13 in keys:
            raise ValueError("unlucky")
        return None if 0 in keys else [10 * key for key in keys]


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_first_goes_at_once_and_those_who_come_meanwhile_go_together() -> None:
    trips = Trips()
    joined = Joined(trips, max_bytes=100, max_trips=1)
    asked = [asyncio.create_task(joined.ask([1], 5))]
    await _settle()
    assert trips.keys == [[1]]
    asked += [asyncio.create_task(joined.ask(keys, 5)) for keys in ([2, 3], [], [4])]
    await _settle()
    assert trips.keys == [[1]]
    trips.go.release()
    trips.go.release()
    assert await asyncio.gather(*asked) == [[10], [20, 30], [], [40]]
    assert (trips.keys, trips.num_bytes) == ([[1], [2, 3, 4]], [5, 15])


async def test_as_many_trips_as_allowed_are_under_way_at_once() -> None:
    trips = Trips()
    joined = Joined(trips, max_bytes=100, max_trips=2)
    asked = []
    for key in (1, 2, 3, 4):
        asked.append(asyncio.create_task(joined.ask([key], 1)))
        await _settle()
    assert trips.keys == [[1], [2]]
    for _ in range(4):
        trips.go.release()
    assert await asyncio.gather(*asked) == [[10], [20], [30], [40]]


async def test_a_trip_brings_no_more_than_its_bytes_but_one_question_whole() -> None:
    trips = Trips()
    joined = Joined(trips, max_bytes=10, max_trips=1)
    asked = [asyncio.create_task(joined.ask([key], size)) for key, size in ((1, 4), (2, 6), (3, 4), (4, 1), (5, 50))]
    for _ in range(5):
        trips.go.release()
    await asyncio.gather(*asked)
    assert trips.keys == [[1, 2], [3, 4], [5]]


async def test_who_has_left_is_not_asked_for_and_holds_nobody_up() -> None:
    trips = Trips()
    joined = Joined(trips, max_bytes=100, max_trips=1)
    first = asyncio.create_task(joined.ask([1], 1))
    await _settle()
    left, last = (asyncio.create_task(joined.ask([key], 1)) for key in (2, 3))
    await _settle()
    first.cancel()
    left.cancel()
    trips.go.release()
    trips.go.release()
    assert await last == [30]
    assert trips.keys == [[1], [3]]


async def test_a_failure_is_that_of_all_who_were_on_the_trip_and_of_nobody_else() -> None:
    trips = Trips()
    joined = Joined(trips, max_bytes=100, max_trips=1)
    asked = [asyncio.create_task(joined.ask([0], 1))]
    await _settle()
    asked += [asyncio.create_task(joined.ask([key], 1)) for key in (12, 13)]
    trips.go.release()
    trips.go.release()
    first, *others = await asyncio.gather(*asked, return_exceptions=True)
    assert first is None
    assert [str(error) for error in others] == ["unlucky", "unlucky"]
    again = asyncio.create_task(joined.ask([5], 1))
    trips.go.release()
    assert await again == [50]


@pytest.mark.parametrize("max_trips", [1, 2, 3])
@given(waits=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), max_size=30))
def test_everybody_is_answered_whenever_they_come(max_trips: int, waits: list[tuple[int, int]]) -> None:
    async def ask(keys: SequenceOf[int], _: int) -> list[int]:
        await asyncio.sleep(0)
        return [10 * key for key in keys]

    async def run() -> None:
        joined = Joined(ask, max_bytes=5, max_trips=max_trips)

        async def caller(key: int, turns: int) -> SequenceOf[int] | None:
            for _ in range(turns):
                await asyncio.sleep(0)
            return await joined.ask([key], key)

        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(caller(*wait) for wait in waits))
        assert answers == [[10 * key] for key, _ in waits]

    asyncio.run(run())
